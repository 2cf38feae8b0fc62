//! How documents are read and written: as Go's encoding/json does it, which every client of the
//! API was built against (bodies of requests: `request`). Reading: unknown fields are ignored, `null` and absence are the zero
//! value. Writing: an empty list is `null`, `[]` or absent as the published API has it, field by field.

use insula_base::{Kind, Kinded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A body that is not the document which was expected.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or JSON that ends early or goes on after the document.
    #[error("the body is not JSON: {0}")]
    Syntax(serde_json::Error),
    /// A field of another type than the API's.
    #[error("field {field}: {reason}")]
    Field {
        /// Path of the field, dots between the parts.
        field: String,
        /// What was expected and found.
        reason: serde_json::Error,
    },
}

impl Kinded for DocumentError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// Reads a document; the error of an ill-typed field names the field.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    // To know at each field where one is takes as long as the rest.
    if let Ok(document) = serde_json::from_slice(bytes) {
        return Ok(document);
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let document = serde_path_to_error::deserialize(&mut reader).map_err(at_field)?;
    reader.end().map_err(DocumentError::Syntax)?;
    Ok(document)
}

pub(crate) fn at_field(error: serde_path_to_error::Error<serde_json::Error>) -> DocumentError {
    let field = error.path().to_string();
    let reason = error.into_inner();
    if reason.is_data() && field != "." {
        DocumentError::Field { field, reason }
    } else {
        DocumentError::Syntax(reason)
    }
}

/// `null` is the zero value.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An empty list or map is written as `null`: a nil slice or map of Go.
pub(crate) fn null_if_empty<S: Serializer, T: Serialize + Default + PartialEq>(
    value: &T,
    s: S,
) -> Result<S::Ok, S::Error> {
    if is_zero(value) { s.serialize_none() } else { value.serialize(s) }
}

/// Whether `omitempty` would leave the field out.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A list of strings that may be written as one string (`Cmd`, `Entrypoint`, `Shell`).
pub(crate) fn words<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings is expected")]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(d)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

/// A list that may be written as one string, empty where there is none (`CapAdd`, `CapDrop`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(words(d)?.unwrap_or_default()))
    }
}

impl std::ops::Deref for Words {
    type Target = Vec<String>;

    fn deref(&self) -> &Vec<String> {
        &self.0
    }
}

impl From<Vec<String>> for Words {
    fn from(words: Vec<String>) -> Self {
        Self(words)
    }
}

/// A struct of the API: every field may be absent or `null`, names are PascalCase.
macro_rules! document {
    ($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $(
                $(#[$field_attr])*
                #[serde(deserialize_with = "crate::lenient::nullable")]
                pub $field: $type,
            )*
        }
    };
}

/// As [`document!`], with `snake_case` names (statistics).
macro_rules! snake_document {
    ($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[$field_attr])*
                #[serde(deserialize_with = "crate::lenient::nullable")]
                pub $field: $type,
            )*
        }
    };
}

pub(crate) use document;
pub(crate) use snake_document;

/// The value of a set member (`"80/tcp": {}`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}
