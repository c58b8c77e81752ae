#![no_main]
//! Texts of firewall rules, in each version of the language.

use libfuzzer_sys::fuzz_target;
use model::firewall::{Language, Rule};

fuzz_target!(|text: &str| {
    for language in [Language::V1, Language::V2, Language::V3, Language::V4] {
        if let Ok(rule) = Rule::parse_as(text, language) {
            let canonical = rule.to_string();
            assert_eq!(Rule::parse_as(&canonical, language).as_ref(), Ok(&rule));
            assert_eq!(canonical.parse::<Rule>(), Ok(rule), "a newer language means the same");
        }
    }
});
