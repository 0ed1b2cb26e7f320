//! Members of the record that this version does not know.

use serde_json::{Map, Value};

/// Members that this version does not know.
pub type Unknown = Map<String, Value>;
