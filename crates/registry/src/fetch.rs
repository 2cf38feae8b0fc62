//! Files that are no image's: what `ADD` names by an address.

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, LAST_MODIFIED};
use reqwest::Response;
use url::Url;

use crate::http::{Ask, Pace, failed};
use crate::{Error, Registries, Result};

/// Bytes of one file.
const SIZE_MAX: u64 = 16 << 30;
/// Bytes of a file's name.
const NAME_MAX: usize = 255;

/// A file on its way here.
#[derive(Debug)]
pub struct Fetch {
    response: Response,
    pace: Pace,
    what: String,
    got: u64,
    /// What the address calls it, if it calls it something.
    pub name: Option<String>,
    /// When it was changed, as the server says it (RFC 9110 section 8.8.2).
    pub modified: Option<String>,
}

impl Registries {
    /// Asks for what is at an address, `http` or `https`.
    pub async fn fetch(&self, address: &str) -> Result<Fetch> {
        let url = Url::parse(address).map_err(|error| Error::Invalid(format!("{address:?}: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Invalid(format!("{address:?} begins neither with http:// nor with https://")));
        }
        // Neither credentials nor what is asked belong into messages.
        let what = format!("{}://{}{}", url.scheme(), crate::http::authority(&url), url.path());
        let doing = format!("download {what}");
        let name = name_of(&url);
        // Bytes as they are.
        let ask = Ask::new(Method::GET, url, &doing).header(ACCEPT, "*/*");
        let response = self.http.send(ask).await?;
        if !response.status().is_success() {
            return Err(failed(self.options(), &what, &doing, response).await);
        }
        let modified = response.headers().get(LAST_MODIFIED).and_then(|value| value.to_str().ok());
        let modified = modified.map(str::to_owned);
        Ok(Fetch { response, pace: Pace::new(&self.options().limits), what, got: 0, name, modified })
    }
}

impl Fetch {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.pace.chunk(&mut self.response, &self.what).await?;
        self.got += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.got > SIZE_MAX {
            return Err(Error::TooLong { what: self.what.clone(), limit: SIZE_MAX });
        }
        Ok(chunk)
    }
}

/// The last part of the path that says something.
fn name_of(url: &Url) -> Option<String> {
    let last = url.path_segments()?.rfind(|part| !part.is_empty())?;
    let name = decoded(last)?;
    let fit = !matches!(name.as_str(), "." | "..") && !name.contains(['/', '\0']) && name.len() <= NAME_MAX;
    fit.then_some(name)
}

/// Without the signs of RFC 3986 section 2.1.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_what_their_address_ends_with() {
        let name = |text: &str| name_of(&Url::parse(text).unwrap());
        assert_eq!(name("http://a/b/c.tar?x=1").as_deref(), Some("c.tar"));
        assert_eq!(name("http://a/b/c%20d/").as_deref(), Some("c d"));
        assert_eq!(name("http://a/"), None);
        assert_eq!(name("http://a/x%2F..%2Fy"), None);
        assert_eq!(name("http://a/%zz").as_deref(), Some("%zz"));
    }
}
