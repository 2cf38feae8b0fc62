//! How a path names a version of the API.

use insula_models::ApiVersion;

use crate::error::ApiError;

/// Splits `/v1.43/containers/json` into its version and `/containers/json`. A path whose first part
/// is no version is returned whole, with the newest.
pub(crate) fn split(path: &str) -> Result<(ApiVersion, &str), ApiError> {
    let Some((version, rest)) = versioned(path) else { return Ok((ApiVersion::MAX, path)) };
    if version > ApiVersion::MAX {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            ApiVersion::MAX
        )));
    }
    if version < ApiVersion::MIN {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {}, \
             please upgrade your client to a newer version",
            ApiVersion::MIN
        )));
    }
    Ok((version, rest))
}

fn versioned(path: &str) -> Option<(ApiVersion, &str)> {
    let tail = path.strip_prefix("/v")?;
    let slash = tail.find('/')?;
    Some((tail[..slash].parse().ok()?, &tail[slash..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_name_a_version() {
        assert_eq!(split("/v1.43/containers/json").unwrap(), (ApiVersion::v1(43), "/containers/json"));
        for plain in
            ["/containers/json", "/volumes", "/version", "/v", "/v1.43", "/vx.1/a", "/v1./a", "/", ""]
        {
            assert_eq!(split(plain).unwrap(), (ApiVersion::MAX, plain));
        }
    }

    #[test]
    fn other_versions_are_refused_in_docker_s_words() {
        assert_eq!(
            split("/v1.60/info").unwrap_err().to_string(),
            "client version 1.60 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(
            split("/v1.12/info").unwrap_err().to_string(),
            "client version 1.12 is too old. Minimum supported API version is 1.24, \
             please upgrade your client to a newer version"
        );
    }
}
