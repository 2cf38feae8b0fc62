//! Documents with the fields of a type of the API, found by asking the type: what it reads is made up and written
//! down while it reads.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value, json};

use super::Random;

type Error = serde::de::value::Error;

/// A document as `T` is one, with some of its fields.
pub(super) fn like<T: DeserializeOwned>(random: &mut Random) -> Value {
    let mut out = Value::Null;
    // A value that the type itself refuses ends the document there.
    let _ = T::deserialize(Maker { random, out: &mut out, depth: 0 });
    out
}

struct Maker<'a> {
    random: &'a mut Random,
    out: &'a mut Value,
    depth: u32,
}

macro_rules! numbers {
    ($($call:ident $visit:ident $type:ty),*) => {
        $(
            fn $call<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                const EDGES: [$type; 6] = [0, 1, 2, 100, <$type>::MIN, <$type>::MAX];
                let number = EDGES[self.random.below(EDGES.len())];
                *self.out = json!(number);
                visitor.$visit(number)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Maker<'_> {
    type Error = Error;

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let truth = self.random.one_in(2);
        *self.out = json!(truth);
        visitor.visit_bool(truth)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.random.word();
        *self.out = json!(text);
        visitor.visit_string(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// Where a type takes several forms: a text or a list of them.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.random.one_in(2) { self.deserialize_str(visitor) } else { self.deserialize_seq(visitor) }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.random.one_in(8) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = self.random.below(3);
        visitor.visit_seq(Elements { maker: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { maker: self, left: length })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let names = (0..self.random.below(3)).map(|_| self.random.word()).collect();
        visitor.visit_map(Entries { maker: self, names, name: String::new() })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // All of the outermost now and then, else few: one that is refused hides the others.
        let most = if self.depth == 0 { 4 } else { 3 };
        let few = self.random.below(most) + 1;
        let all = self.random.one_in(40);
        let chosen = fields.iter().filter(|_| all || self.random.below(fields.len()) < few);
        let names = chosen.map(|name| (*name).to_owned()).collect();
        visitor.visit_map(Entries { maker: self, names, name: String::new() })
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple_struct enum identifier ignored_any
    }
}

struct Elements<'a> {
    maker: Maker<'a>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if !self.maker.out.is_array() {
            *self.maker.out = json!([]);
        }
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let mut out = Value::Null;
        let maker = Maker { random: self.maker.random, out: &mut out, depth: self.maker.depth + 1 };
        let read = seed.deserialize(maker);
        if let Value::Array(list) = self.maker.out {
            list.push(out);
        }
        read.map(Some)
    }
}

struct Entries<'a> {
    maker: Maker<'a>,
    names: Vec<String>,
    name: String,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if !self.maker.out.is_object() {
            *self.maker.out = Map::new().into();
        }
        let Some(name) = self.names.pop() else { return Ok(None) };
        self.name.clone_from(&name);
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let mut out = Value::Null;
        let maker = Maker { random: self.maker.random, out: &mut out, depth: self.maker.depth + 1 };
        let read = seed.deserialize(maker);
        if let Value::Object(map) = self.maker.out {
            map.insert(std::mem::take(&mut self.name), out);
        }
        read
    }
}

/// Changes something somewhere: another type, another size, a field that nobody knows.
pub(super) fn spoil(random: &mut Random, value: &mut Value) {
    let inner = match value {
        Value::Object(map) if !map.is_empty() && !random.one_in(4) => {
            let at = random.below(map.len());
            map.values_mut().nth(at)
        }
        Value::Array(list) if !list.is_empty() && !random.one_in(4) => {
            let at = random.below(list.len());
            list.get_mut(at)
        }
        _ => None,
    };
    match inner {
        Some(inner) => spoil(random, inner),
        None => *value = odd(random, value.take()),
    }
}

fn odd(random: &mut Random, former: Value) -> Value {
    match random.below(14) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!(-1),
        3 => json!(1.5),
        4 => json!(u64::MAX),
        5 => json!(1e300),
        6 => json!(random.word()),
        7 => json!([former]),
        8 => json!({ random.word(): former }),
        9 => (0..100).fold(former, |inner, _| json!([inner])),
        10 => (0..60).fold(former, |inner, _| json!({ "a": inner })),
        11 => vec![former; 1000].into(),
        12 => {
            (0..1000).map(|n| (format!("{}{n}", random.word()), former.clone())).collect::<Map<_, _>>().into()
        }
        _ => json!("x".repeat(100_000)),
    }
}
