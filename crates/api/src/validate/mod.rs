//! Rules that one object can be checked against by itself.
use crate::decode::Problem;
use crate::object::Object;

pub fn object(_: &Object) -> Vec<Problem> {
    Vec::new()
}
