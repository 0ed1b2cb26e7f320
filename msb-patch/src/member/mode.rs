//! A file mode in octal, as in chmod(1).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// Permission bits: one to four octal digits in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Octal;
        impl Visitor<'_> for Octal {
            type Value = Mode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an octal number in a string")
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Mode, E> {
                Err(E::custom("a quoted octal number is expected, as in \"0644\""))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Mode, E> {
                let is_octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
                match u32::from_str_radix(text, 8) {
                    Ok(mode) if is_octal && mode <= 0o7777 => Ok(Mode(mode)),
                    _ => Err(E::custom(format!("{text:?} is not an octal number from \"0000\" to \"7777\""))),
                }
            }
        }
        from.deserialize_any(Octal)
    }
}
