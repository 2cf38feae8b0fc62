//! What a step of a build needs of its client when it is reached.

use insula_engine::build::{Answered, BuildClient, Secret};
use insula_engine::images::Credentials;

use super::messages::{CredentialsRequest, CredentialsResponse, GetSecretRequest, GetSecretResponse};
use super::session::Session;

const SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
/// Bytes of one secret, as in BuildKit.
const SECRET_MAX: usize = 500 << 10;
/// Docker Hub, as images and as clients call it.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

impl BuildClient for Session {
    fn secret<'a>(&'a self, id: &'a str) -> Answered<'a, Option<Secret>> {
        Box::pin(async move {
            if !self.serves(SECRET) {
                return Ok(None);
            }
            let question = GetSecretRequest { id: id.to_owned() };
            match self.channel.ask::<GetSecretResponse>(SECRET, &question).await {
                Ok(answer) if answer.data.len() > SECRET_MAX => Err(insula_engine::Error::InvalidArgument(
                    format!("secret {id} is larger than {SECRET_MAX} bytes"),
                )),
                Ok(answer) => Ok(Some(answer.data.into())),
                Err(failure) if failure.is_not_found() => Ok(None),
                Err(failure) => Err(failure.into()),
            }
        })
    }

    fn credentials<'a>(&'a self, registry: &'a str) -> Answered<'a, Credentials> {
        Box::pin(async move {
            if !self.serves(CREDENTIALS) {
                return Ok(Credentials::default());
            }
            let host = if registry == HUB.0 { HUB.1 } else { registry };
            let question = CredentialsRequest { host: host.to_owned() };
            let answer = self.channel.ask::<CredentialsResponse>(CREDENTIALS, &question).await?;
            Ok(credentials(answer))
        })
    }
}

/// A secret without a name is a token of an earlier login.
fn credentials(answer: CredentialsResponse) -> Credentials {
    let CredentialsResponse { username, secret } = answer;
    match (username.is_empty(), secret.is_empty()) {
        (true, true) => Credentials::Anonymous,
        (true, false) => Credentials::Identity(secret),
        (false, _) => Credentials::Basic { user: username, password: secret },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_alone_is_a_token() {
        let answered = |username: &str, secret: &str| {
            credentials(CredentialsResponse { username: username.to_owned(), secret: secret.to_owned() })
        };
        assert_eq!(answered("", ""), Credentials::Anonymous);
        assert_eq!(answered("", "t"), Credentials::Identity("t".to_owned()));
        let basic = Credentials::Basic { user: "me".to_owned(), password: "p".to_owned() };
        assert_eq!(answered("me", "p"), basic);
    }
}
