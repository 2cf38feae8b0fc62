//! Targets with characters that no URI has, raw quotes of JSON above all (`?filters={"status":["running"]}`). Go's
//! server takes them as they are, so people and clients send them; HTTP here refuses them without a word
//! (RFC 3986, section 3.4). The first request of a connection is looked at.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;

/// The beginning of a request whose target is written as a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Bytes of what it stands for.
    length: usize,
    line: Vec<u8>,
}

/// The first line of a request, up to its end, if its target has to be mended and can be.
pub(crate) fn mended(bytes: &[u8]) -> Option<Mended> {
    let length = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    let line = std::str::from_utf8(&bytes[..length]).ok()?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_one = words.next().is_none() && target.starts_with('/') && version.starts_with("HTTP/1.");
    if !is_one || target.parse::<http::uri::PathAndQuery>().is_ok() {
        return None;
    }
    let encoded = encoded(target);
    encoded.parse::<http::uri::PathAndQuery>().ok()?;
    Some(Mended { length, line: format!("{method} {encoded} {version}").into_bytes() })
}

/// Everything but what section 2 of RFC 3986 has names for, and percent signs, which encode already.
fn encoded(target: &str) -> String {
    let mut encoded = String::with_capacity(2 * target.len());
    for byte in target.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. => {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            byte => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// The connection with that in place of its first line.
pub(crate) async fn replace(
    mut stream: UnixStream,
    mended: Mended,
) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    stream.read_exact(&mut vec![0; mended.length]).await?;
    let (reading, writing) = stream.into_split();
    Ok(tokio::io::join(std::io::Cursor::new(mended.line).chain(reading), writing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_uri_has_is_mended() {
        let head = b"GET /containers/json?filters={\"name\":[\"a b\"]} HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(mended(head), None, "with a blank it is no request at all");
        let head =
            b"GET /containers/json?all=1&filters={\"name\":[\"x%20\xc3\xa9\"]} HTTP/1.1\r\nHost: x\r\n\r\n";
        let mended = super::mended(head).unwrap();
        let line = "GET /containers/json?all=1&filters=%7B%22name%22:[%22x%20%C3%A9%22]%7D HTTP/1.1";
        assert_eq!(String::from_utf8(mended.line).unwrap(), line);
        assert_eq!(&head[mended.length..mended.length + 2], b"\r\n");
        for whole in [
            "GET /containers/json?filters=%7B%22a%22%3A1%7D HTTP/1.1\r\n",
            "GET /containers/json HTTP/1.1\r\n",
            "GET /x?\"y",
            "* \"x\" HTTP/1.1\r\n",
            "GET x?\" HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "",
        ] {
            assert_eq!(super::mended(whole.as_bytes()), None, "{whole}");
        }
    }
}
