//! What people say of a key: its description and its tags. AWS's rules.

use std::collections::BTreeMap;

use super::Invalid;

const LONGEST_DESCRIPTION: usize = 8_192;
const MOST_TAGS: usize = 50;
const LONGEST_TAG: usize = 128;
const LONGEST_TAG_VALUE: usize = 256;

/// A key's description: at most 8,192 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDescription(String);

impl KeyDescription {
    pub fn new(text: String) -> Result<Self, Invalid> {
        if text.chars().count() > LONGEST_DESCRIPTION {
            return Err(Invalid::new("has at most 8,192 characters"));
        }
        Ok(Self(text))
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

/// A key's tags: at most 50, each once, with names of 1 to 128 and values of at most 256 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags(BTreeMap<String, String>);

impl Tags {
    /// The tags that these pairs are, whose names are all different.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, Invalid> {
        let tags: BTreeMap<_, _> = pairs.into_iter().take(MOST_TAGS + 1).collect();
        if tags.len() > MOST_TAGS {
            return Err(Invalid::new("are at most 50"));
        }
        for (name, value) in &tags {
            let lengths = (name.chars().count(), value.chars().count());
            if !(1..=LONGEST_TAG).contains(&lengths.0) || lengths.1 > LONGEST_TAG_VALUE {
                return Err(Invalid::new("have keys of 1 to 128 and values of at most 256 characters"));
            }
            if name.to_ascii_lowercase().starts_with("aws:") {
                return Err(Invalid::new("have no keys that start with aws:"));
            }
        }
        Ok(Self(tags))
    }

    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_descriptions_have_bounds() {
        let tag = |name: &str, value: &str| Tags::new([(name.to_owned(), value.to_owned())]);
        assert!(tag("team", "").is_ok() && tag(&"é".repeat(128), &"é".repeat(256)).is_ok());
        for (name, value) in [("", "x"), (&"n".repeat(129), "x"), ("n", &"x".repeat(257)), ("AWS:n", "x")] {
            assert!(tag(name, value).is_err(), "{name:?}");
        }
        let many = |count: usize| Tags::new((0..count).map(|number| (number.to_string(), String::new())));
        assert!(many(50).is_ok() && many(51).is_err());
        assert!(KeyDescription::new("é".repeat(8_192)).is_ok() && KeyDescription::new("x".repeat(8_193)).is_err());
    }
}
