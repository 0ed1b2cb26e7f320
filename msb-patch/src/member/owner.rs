//! A user or group: a number, or a name of the image.

use std::fmt;

use msb::record::owner::{Id, NotAnId};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A user or group before it is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A number.
    Id(Id),
    /// A name. It may consist of digits.
    Name(String),
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = Owner;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Owner, E> {
                Id::new(number).map(Owner::Id).map_err(|why| E::custom(format!("invalid value: {number}: {why}")))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Owner, E> {
                Err(E::custom(format!("invalid value: {number}: {}", NotAnId::OutOfRange)))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Owner, E> {
                match name.parse::<Id>() {
                    Err(why @ (NotAnId::Reserved | NotAnId::OutOfRange)) => {
                        Err(E::custom(format!("invalid value: {name:?}: {why}")))
                    }
                    _ if name.is_empty() => Err(E::custom("a number or a name is expected, not an empty string")),
                    _ if name.contains(':') => {
                        Err(E::custom(format!("{name:?}: one user or group is expected (they are two members)")))
                    }
                    _ => Ok(Owner::Name(name.to_owned())),
                }
            }
        }
        from.deserialize_any(NameOrNumber)
    }
}
