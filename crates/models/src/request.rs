//! Bodies of requests are read as Go's encoding/json reads them, which clients of the API were tried against: names
//! of fields are the same in upper and lower case, what is not known is passed over, of what is given twice the last
//! counts, and a list is no document.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use crate::lenient::{DocumentError, at_field};

/// Reads the body of a request; the error of an ill-typed field names the field.
pub fn from_request<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    let value: Value = serde_json::from_slice(bytes).map_err(DocumentError::Syntax)?;
    serde_path_to_error::deserialize(Reader(&value)).map_err(at_field)
}

/// A value, and all that is in it.
#[derive(Debug, Clone, Copy)]
struct Reader<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Reader<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(list) => {
                let mut elements = SeqDeserializer::new(list.iter().map(Reader));
                let read = visitor.visit_seq(&mut elements)?;
                elements.end()?;
                Ok(read)
            }
            Value::Object(map) => visitor.visit_map(MapDeserializer::new(
                map.iter().map(|(name, value)| (name.as_str(), Reader(value))),
            )),
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(MapDeserializer::new(known(map, fields))),
            Value::Array(_) => Err(Self::Error::invalid_type(Unexpected::Seq, &visitor)),
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

/// What has the name of a field; where several have it but for their case, one of them, the exact one first.
fn known<'de>(
    map: &'de Map<String, Value>,
    fields: &'static [&'static str],
) -> impl Iterator<Item = (&'static str, Reader<'de>)> {
    let alike = |field: &'static str| {
        map.iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(field))
            .map(|(_, value)| value)
            .next_back()
    };
    let given = move |field: &'static &'static str| {
        map.get(*field).or_else(|| alike(field)).map(|value| (*field, Reader(value)))
    };
    fields.iter().filter_map(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContainerCreateRequest, HostConfig, VolumeCreateRequest, from_json};

    fn read(text: &str) -> ContainerCreateRequest {
        from_request(text.as_bytes()).unwrap()
    }

    fn refused(text: &str) -> String {
        from_request::<ContainerCreateRequest>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn names_of_fields_have_no_case() {
        let read = read(
            r#"{"image":"busybox","CMD":"one word","hostconfig":{"binds":["a:/b"],"portbindings":{"80/TCP":null},
                "ulimits":[{"name":"nofile","SOFT":5}]},"networkingConfig":{"endpointsconfig":{"Net":{"ALIASES":["a"]}}}}"#,
        );
        assert_eq!((read.image.as_str(), read.cmd), ("busybox", Some(vec!["one word".to_owned()])));
        assert_eq!((read.host_config.binds, read.host_config.ulimits[0].soft), (vec!["a:/b".to_owned()], 5));
        // Names that are a user's are as they are.
        assert!(read.host_config.port_bindings.contains_key("80/TCP"));
        assert_eq!(read.networking_config.endpoints_config["Net"].aliases, ["a"]);
    }

    #[test]
    fn of_what_is_given_twice_the_last_counts() {
        assert_eq!(read(r#"{"Image":"first","Image":"last"}"#).image, "last");
        assert_eq!(read(r#"{"image":"other","Image":"exact"}"#).image, "exact");
    }

    #[test]
    fn the_rest_is_as_in_answers() {
        let text = r#"{"Name":null,"Labels":{"a":"b"},"DriverOpts":{},"Unknown":[{"Deep":1}]}"#;
        let (ours, plain) =
            (from_request::<VolumeCreateRequest>(text.as_bytes()), from_json(text.as_bytes()));
        assert_eq!(ours.unwrap(), plain.unwrap());
        let host = HostConfig { memory: i64::MIN, io_maximum_iops: u64::MAX, ..HostConfig::default() };
        let text = serde_json::to_vec(&host).unwrap();
        assert_eq!(from_request::<HostConfig>(&text).unwrap(), host);
    }

    #[test]
    fn what_is_ill_typed_is_refused_by_name() {
        for (text, field) in [
            (r#"{"HostConfig":{"Memory":"1g"}}"#, "HostConfig.Memory"),
            (r#"{"HostConfig":{"memory":1.5}}"#, "HostConfig.Memory"),
            (r#"{"HostConfig":[]}"#, "HostConfig"),
            (r#"{"HostConfig":{"ConsoleSize":[1,2,3]}}"#, "HostConfig.ConsoleSize"),
            (r#"{"HostConfig":{"ConsoleSize":[1,-2]}}"#, "HostConfig.ConsoleSize[1]"),
            (r#"{"HostConfig":{"CpuShares":9223372036854775808}}"#, "HostConfig.CpuShares"),
            (r#"{"Cmd":[["a"]]}"#, "Cmd"),
            (r#"{"Labels":{"a":1}}"#, "Labels.a"),
        ] {
            assert!(refused(text).starts_with(&format!("field {field}: ")), "{text}: {}", refused(text));
        }
        for text in ["", "{", "{} x", "\"\u{1}\"", &"[".repeat(200_000)] {
            assert!(refused(text).contains("not JSON"), "{text:.10}: {}", refused(text));
        }
        assert!(refused("[]").contains("invalid type"), "{}", refused("[]"));
    }
}
