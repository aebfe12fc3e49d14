//! What JSON must be beyond what serde asks for, and lists that are read without asking for memory that may end the
//! process. Knows nothing of what is in it.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::memory;

/// A struct read from an object only: serde alone would take an array of its values, too.
pub struct Named<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Named<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object, {...}")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Named<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Named)
            }
        }
        input.deserialize_map(Fields(PhantomData))
    }
}

/// A value in which no object has a key twice: serde_json alone would take the last.
pub struct Unique(pub Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Value, A::Error> {
                items(seq, |unique: Unique| unique.0).map(Value::Array)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some((key, Unique(value))) = entries.next_entry::<String, _>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("duplicate field `{key}`")));
                    }
                    map.insert(key, value);
                }
                Ok(Value::Object(map))
            }
        }
        input.deserialize_any(Any).map(Unique)
    }
}

/// A list of such values.
pub fn unique<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Value>, D::Error> {
    Ok(list::<Unique, _>(input)?.into_iter().map(|unique| unique.0).collect())
}

/// A list, as long as the file has it.
pub fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    List::deserialize(input).map(|list| list.0)
}

/// A list, or null.
pub fn optional_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<List<T>>::deserialize(input)?.map(|list| list.0))
}

struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a sequence")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<List<T>, A::Error> {
                items(from, |item| item).map(List)
            }
        }
        input.deserialize_seq(Items(PhantomData))
    }
}

/// What is left of a sequence, item by item.
fn items<'de, T: Deserialize<'de>, U, A: SeqAccess<'de>>(
    mut from: A,
    each: impl Fn(T) -> U,
) -> Result<Vec<U>, A::Error> {
    let mut list = Vec::new();
    while let Some(item) = from.next_element()? {
        memory::push(&mut list, each(item)).map_err(A::Error::custom)?;
    }
    Ok(list)
}
