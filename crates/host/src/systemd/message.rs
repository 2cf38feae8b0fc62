//! Messages of D-Bus: its specification, "Type System", "Marshaling (Wire Format)" and "Message Protocol".
//!
//! Only what calls of systemd send and what comes back: numbers, texts, and properties on the way out.

use insula_spec::bundle::UnitValue;

use super::error::{Error, Result};

/// The longest message that there may be.
pub const LONGEST: usize = 128 << 20;
/// The longest that is read. What systemd answers here has some hundred bytes.
pub(super) const READ: usize = 256 * 1024;
/// Before the fields of the header.
pub(super) const FIXED: usize = 16;

pub(super) const CALL: u8 = 1;
pub(super) const RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// Fields of the header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// Bytes of this host. The first letter of a message says which order it has.
#[cfg(target_endian = "little")]
const ORDER: u8 = b'l';
#[cfg(target_endian = "big")]
const ORDER: u8 = b'B';

/// Values one after the other, each where its alignment wants it.
#[derive(Debug, Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    pub(super) fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    pub(super) fn flag(mut self, flag: bool) -> Self {
        self.signature.push('b');
        put_number(&mut self.bytes, u32::from(flag));
        self
    }

    pub(super) fn properties(mut self, properties: &[(String, UnitValue)]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, properties, |bytes, (name, value)| {
            align(bytes, 8);
            put_text(bytes, name);
            put_variant(bytes, value);
        });
        self
    }

    /// With a number where the flag is.
    #[cfg(test)]
    pub(super) fn into_signal(mut self) -> Self {
        self.signature = "uoss".to_owned();
        self
    }

    /// No unit beside the one that is asked for.
    pub(super) fn no_others(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array::<()>(&mut self.bytes, 8, &[], |_, ()| ());
        self
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// A call as it is sent.
pub(super) fn call(serial: u32, target: Target, member: &str, body: &Body) -> Vec<u8> {
    let mut bytes = vec![ORDER, CALL, 0, 1];
    put_number(&mut bytes, body.bytes.len() as u32);
    put_number(&mut bytes, serial);
    let mut fields = vec![
        (PATH, 'o', target.path),
        (INTERFACE, 's', target.interface),
        (MEMBER, 's', member),
        (DESTINATION, 's', target.destination),
    ];
    if !body.signature.is_empty() {
        fields.push((SIGNATURE, 'g', &body.signature));
    }
    put_array(&mut bytes, 8, &fields, |bytes, (code, kind, text)| {
        align(bytes, 8);
        bytes.push(*code);
        put_signature(bytes, &kind.to_string());
        if *kind == 'g' { put_signature(bytes, text) } else { put_text(bytes, text) }
    });
    align(&mut bytes, 8);
    bytes.extend(&body.bytes);
    bytes
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_number(bytes: &mut Vec<u8>, number: u32) {
    align(bytes, 4);
    bytes.extend(number.to_ne_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u32);
    bytes.extend(text.bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend(text.bytes());
    bytes.push(0);
}

/// The length is that of the elements alone, without what aligns the first of them.
fn put_array<T>(bytes: &mut Vec<u8>, alignment: usize, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_number(bytes, 0);
    let length = bytes.len() - 4;
    align(bytes, alignment);
    let begin = bytes.len();
    items.iter().for_each(|item| put(bytes, item));
    let count = (bytes.len() - begin) as u32;
    bytes[length..length + 4].copy_from_slice(&count.to_ne_bytes());
}

fn put_variant(bytes: &mut Vec<u8>, value: &UnitValue) {
    let signature = match value {
        UnitValue::Flag(_) => "b",
        UnitValue::Text(_) => "s",
        UnitValue::Signed(_) => "i",
        UnitValue::Unsigned(_) => "u",
        UnitValue::Long(_) => "x",
        UnitValue::Limit(_) => "t",
        UnitValue::Bytes(_) => "ay",
        UnitValue::Numbers(_) => "au",
        UnitValue::Texts(_) => "as",
        UnitValue::Pairs(_) => "a(ss)",
    };
    put_signature(bytes, signature);
    match value {
        UnitValue::Flag(flag) => put_number(bytes, u32::from(*flag)),
        UnitValue::Text(text) => put_text(bytes, text),
        UnitValue::Signed(number) => put_number(bytes, number.cast_unsigned()),
        UnitValue::Unsigned(number) => put_number(bytes, *number),
        UnitValue::Long(number) => put_long(bytes, number.cast_unsigned()),
        UnitValue::Limit(number) => put_long(bytes, *number),
        UnitValue::Bytes(list) => put_array(bytes, 1, list, |bytes, byte| bytes.push(*byte)),
        UnitValue::Numbers(list) => put_array(bytes, 4, list, |bytes, number| put_number(bytes, *number)),
        UnitValue::Texts(list) => put_array(bytes, 4, list, |bytes, text| put_text(bytes, text)),
        UnitValue::Pairs(list) => put_array(bytes, 8, list, |bytes, (first, second)| {
            align(bytes, 8);
            put_text(bytes, first);
            put_text(bytes, second);
        }),
    }
}

fn put_long(bytes: &mut Vec<u8>, number: u64) {
    align(bytes, 8);
    bytes.extend(number.to_ne_bytes());
}

/// How long the message is that begins with these bytes, whether or not it is one to be read.
pub fn length(begin: &[u8; FIXED]) -> Result<usize> {
    let number = |at: usize| {
        let bytes = [begin[at], begin[at + 1], begin[at + 2], begin[at + 3]];
        if begin[0] == b'l' { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    };
    if !matches!(begin[0], b'l' | b'B') || begin[3] != 1 {
        return Err(Error::Protocol("a message of another version"));
    }
    let (body, fields) = (number(4) as usize, number(12) as usize);
    match fields.checked_next_multiple_of(8).and_then(|fields| fields.checked_add(body)?.checked_add(FIXED)) {
        Some(length) if length <= LONGEST => Ok(length),
        _ => Err(Error::Protocol("a message that is too long")),
    }
}

/// A message that has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub reply_to: Option<u32>,
    /// On a bus, which makes sure of it, the unique name of who has sent it.
    pub sender: String,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error: String,
    signature: String,
    body: Vec<u8>,
}

/// A value of a message's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Number(u32),
    Text(String),
}

impl Message {
    /// Reads a whole message.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let cut = Error::Protocol("a message that is cut off");
        let Some(begin) = bytes.first_chunk::<FIXED>() else { return Err(cut) };
        if begin[0] != ORDER {
            return Err(Error::Protocol("a message of another byte order"));
        }
        if bytes.len() > READ {
            return Err(Error::Protocol("a message that is too long"));
        }
        if length(begin)? != bytes.len() {
            return Err(cut);
        }
        let mut message = Self { kind: bytes[1], ..Self::default() };
        let mut reader = Reader { bytes, at: 12 };
        let end = FIXED + reader.number()? as usize;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (REPLY_SERIAL, "u") => message.reply_to = Some(reader.number()?),
                (SENDER, "s") => message.sender = reader.text()?,
                (PATH, "o") => message.path = reader.text()?,
                (INTERFACE, "s") => message.interface = reader.text()?,
                (MEMBER, "s") => message.member = reader.text()?,
                (ERROR_NAME, "s") => message.error = reader.text()?,
                (SIGNATURE, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return Err(Error::Protocol("a field of a type that headers do not have")),
            }
        }
        if reader.at != end {
            return Err(cut);
        }
        reader.align(8)?;
        message.body = bytes[reader.at..].to_vec();
        Ok(message)
    }

    /// What its body holds, as far as it is numbers and texts.
    pub fn items(&self) -> Result<Vec<Item>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let items = self.signature.bytes().map(|kind| match kind {
            b'u' | b'b' => Ok(Some(Item::Number(reader.number()?))),
            b's' | b'o' => Ok(Some(Item::Text(reader.text()?))),
            _ => Ok(None),
        });
        // What comes after a value of another type cannot be found.
        items.map_while(Result::transpose).collect()
    }

    /// The text that its body begins with: of an error, what it says.
    #[must_use]
    pub fn said(&self) -> String {
        match self.items().as_deref() {
            Ok([Item::Text(text), ..]) => text.clone(),
            _ => String::new(),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Error::Protocol("a value that is cut off"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.number()?;
        self.ended(length as usize)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.byte()?;
        self.ended(usize::from(length))
    }

    /// A text with the zero byte after it.
    fn ended(&mut self, length: usize) -> Result<String> {
        let bytes = self.take(length)?.to_vec();
        if self.byte()? != 0 {
            return Err(Error::Protocol("a text without its end"));
        }
        String::from_utf8(bytes).map_err(|_| Error::Protocol("a text that is no UTF-8"))
    }
}

/// What a test answers with.
#[cfg(test)]
pub(super) fn answer(kind: u8, fields: &[(u8, char, &str)], reply_to: u32, body: &Body) -> Vec<u8> {
    let mut bytes = vec![ORDER, kind, 1, 1];
    put_number(&mut bytes, body.bytes.len() as u32);
    put_number(&mut bytes, 1);
    let mut all = fields.to_vec();
    if !body.signature.is_empty() {
        all.push((SIGNATURE, 'g', &body.signature));
    }
    all.push((REPLY_SERIAL, 'u', ""));
    put_array(&mut bytes, 8, &all, |bytes, (code, kind, text)| {
        align(bytes, 8);
        bytes.push(*code);
        put_signature(bytes, &kind.to_string());
        match kind {
            'u' => put_number(bytes, reply_to),
            'g' => put_signature(bytes, text),
            _ => put_text(bytes, text),
        }
    });
    align(&mut bytes, 8);
    bytes.extend(&body.bytes);
    bytes
}
