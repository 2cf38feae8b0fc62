//! Drivers that send output elsewhere. What they send is kept as by the driver `local` too, unless
//! `cache-disabled` says otherwise, so that it can be read.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use insula_spec::plan::{LogPlan, SyslogAddress, SyslogFormat, SyslogPlan};

use super::{Options, Subject, local, render};
use crate::{Error, Result};

/// RFC 5424 section 6.2.1, by Docker's names.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "",
    "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const DAEMON: u8 = 3;
const PORT: u16 = 514;

pub(super) fn syslog(options: &mut Options<'_>, folder: &Path, subject: &Subject<'_>) -> Result<LogPlan> {
    let cache = cache(options, folder)?;
    let address = options.left.remove("syslog-address").unwrap_or_default();
    let address = address_of(&address)?;
    let facility = options.take("syslog-facility", DAEMON, |text| {
        let named = FACILITIES.iter().position(|name| !name.is_empty() && *name == text);
        u8::try_from(named.or_else(|| text.parse().ok())?).ok().filter(|number| *number < 24)
    })?;
    let near = matches!(address, SyslogAddress::Unix { .. } | SyslogAddress::Unixgram { .. });
    let plain = if near { SyslogFormat::Local } else { SyslogFormat::Rfc3164 };
    let format = options.take("syslog-format", plain, |text| match text {
        "" => Some(plain),
        "rfc3164" => Some(SyslogFormat::Rfc3164),
        "rfc5424" => Some(SyslogFormat::Rfc5424),
        "rfc5424micro" => Some(SyslogFormat::Rfc5424Micro),
        _ => None,
    })?;
    // Docker sends none of them in a message either.
    options.attributes(subject)?;
    let syslog = SyslogPlan {
        address,
        facility,
        format,
        tag: tag(options, subject)?,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        utc_offset: jiff::Zoned::now().offset().seconds(),
    };
    Ok(LogPlan::Syslog { syslog, cache })
}

pub(super) fn journald(options: &mut Options<'_>, folder: &Path, subject: &Subject<'_>) -> Result<LogPlan> {
    let cache = cache(options, folder)?;
    let mut fields = BTreeMap::new();
    for (name, value) in options.attributes(subject)? {
        let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
        let name: String = name
            .to_ascii_uppercase()
            .bytes()
            .map(|byte| if plain(byte) { char::from(byte) } else { '_' })
            .collect();
        // Names that begin otherwise are the journal's own.
        let name = name.trim_start_matches(|sign: char| !sign.is_ascii_uppercase());
        if !name.is_empty() {
            fields.insert(name.to_owned(), value);
        }
    }
    let tag = tag(options, subject)?;
    for (name, value) in [
        ("CONTAINER_ID", subject.id.chars().take(12).collect::<String>()),
        ("CONTAINER_ID_FULL", subject.id.to_owned()),
        ("CONTAINER_NAME", subject.name.to_owned()),
        ("CONTAINER_TAG", tag.clone()),
        ("IMAGE_NAME", subject.image.to_owned()),
        ("SYSLOG_IDENTIFIER", tag),
    ] {
        fields.insert(name.to_owned(), value);
    }
    Ok(LogPlan::Journald { fields, cache })
}

fn cache(options: &mut Options<'_>, folder: &Path) -> Result<Option<Box<LogPlan>>> {
    let disabled = options.truth("cache-disabled", false)?;
    let plan = local(options, folder, "cache-")?;
    Ok((!disabled).then(|| Box::new(plan)))
}

fn tag(options: &mut Options<'_>, subject: &Subject<'_>) -> Result<String> {
    let template = options.left.remove("tag").filter(|tag| !tag.is_empty());
    render(template.as_deref().unwrap_or("{{.ID}}"), subject)
}

/// `unix://`, `unixgram://`, `udp://` and `tcp://`; the local receiver without one.
fn address_of(text: &str) -> Result<SyslogAddress> {
    let wrong = |why: &str| Error::InvalidArgument(format!("invalid syslog-address {text:?}: {why}"));
    if text.is_empty() {
        return Ok(SyslogAddress::Unixgram { path: PathBuf::from("/dev/log") });
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("SCHEME://ADDRESS is expected"))?;
    match scheme {
        "unix" | "unixgram" if !rest.starts_with('/') => Err(wrong("an absolute path is expected")),
        "unix" => Ok(SyslogAddress::Unix { path: PathBuf::from(rest) }),
        "unixgram" => Ok(SyslogAddress::Unixgram { path: PathBuf::from(rest) }),
        "udp" => Ok(SyslogAddress::Udp { address: socket(rest).ok_or_else(|| wrong("IP[:PORT] is expected"))? }),
        "tcp" => Ok(SyslogAddress::Tcp { address: socket(rest).ok_or_else(|| wrong("IP[:PORT] is expected"))? }),
        "tcp+tls" => Err(Error::Unsupported(
            "syslog over TLS is not available in this version: send to a receiver on this host that forwards it"
                .to_owned(),
        )),
        _ => Err(wrong("unix, unixgram, udp and tcp are known")),
    }
}

fn socket(text: &str) -> Option<SocketAddr> {
    let text = text.trim_end_matches('/');
    let named = text.replacen("localhost", &Ipv4Addr::LOCALHOST.to_string(), 1);
    named.parse().ok().or_else(|| Some(SocketAddr::new(named.parse::<IpAddr>().ok()?, PORT)))
}
