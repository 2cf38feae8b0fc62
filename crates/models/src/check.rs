//! What a check of the engine finds: insula's addition, below `/insula`.

use std::collections::BTreeMap;

use crate::lenient::document;

document! {
    /// One line of the answer of `POST /insula/check`: something that was found, or at last what was looked at.
    CheckLine {
        #[serde(skip_serializing_if = "Option::is_none")]
        finding: Option<CheckFinding>,
        /// How many of each kind were looked at: the last line.
        #[serde(skip_serializing_if = "Option::is_none")]
        checked: Option<BTreeMap<String, u64>>,
        /// Why there is no more to come.
        #[serde(skip_serializing_if = "String::is_empty")]
        error: String,
    }
}

document! {
    /// Something that is not as it should be.
    CheckFinding {
        /// What it is: `document`, `blob`, `layer`, and whatever else an inspection is about.
        kind: String,
        /// Which one: a digest, a path, an id.
        subject: String,
        problem: String,
        /// Names of images and containers that need it.
        used_by: Vec<String>,
        /// What was done about it; empty if nothing was asked for, or nothing can be done.
        repaired: String,
        /// Why it could not be repaired, where that was asked for.
        #[serde(skip_serializing_if = "String::is_empty")]
        failure: String,
    }
}
