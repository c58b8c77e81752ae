//! Texts in, texts out: canonical forms, errors, and what holds for all of them.

use model::firewall::{Language, Rule, RuleError};
use proptest::prelude::*;

use super::worlds;

/// The canonical text of a rule, or its error.
fn canonical(text: &str) -> String {
    text.parse::<Rule>().map_or_else(|error| format!("error: {error}"), |rule| rule.to_string())
}

fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(canonical(text), *expected, "{text}");
    }
}

const VM_1: &str = "0f570678-c007-4610-a2c0-bbfcaab9f4e6";
const VM_2: &str = "9a343ca8-b42a-4a27-a9c5-800f57d1e8ed";

#[test]
fn words_are_upper_and_names_lower() {
    check(&[
        ("from any to all vms allow tcp port 22", "FROM any TO all vms ALLOW tcp PORT 22"),
        ("FROM ANY TO ALL VMS ALLOW TCP PORT 22", "FROM any TO all vms ALLOW tcp PORT 22"),
        ("FROM (any) TO ( ALL VMS ) BLOCK UDP (PORT ALL)", "FROM any TO all vms BLOCK udp PORT all"),
        ("  from\tany\nto all\u{a0}vms  allow ah ", "FROM any TO all vms ALLOW ah"),
        ("FROM all vms TO ip 10.2.0.1 BLOCK ESP", "FROM all vms TO ip 10.2.0.1 BLOCK esp"),
        ("FROM(tag a)TO any ALLOW tcp(PORT 1 AND PORT 2)", "FROM tag \"a\" TO any ALLOW tcp (PORT 1 AND PORT 2)"),
        (
            "FROM subnet 10.8.0.0 /16 TO all vms ALLOW tcp PORT 0443",
            "FROM subnet 10.8.0.0/16 TO all vms ALLOW tcp PORT 443",
        ),
    ]);
}

#[test]
fn targets_are_sorted_by_kind_and_text() {
    let text = format!(
        "FROM (vm {VM_2} OR tag b OR subnet 10.2.1.0/24 OR ip 9.0.0.1 OR ip 10.0.0.1 OR vm {VM_1} OR tag B OR ip 10.0.0.1) \
         TO (tag z) ALLOW tcp PORT 80"
    );
    let expected = format!(
        "FROM (ip 10.0.0.1 OR ip 9.0.0.1 OR subnet 10.2.1.0/24 OR tag \"B\" OR tag \"b\" OR vm {VM_1} OR vm {VM_2}) TO tag \"z\" \
         ALLOW tcp PORT 80"
    );
    assert_eq!(canonical(&text), expected);
    check(&[
        // Addresses have one spelling.
        (
            "FROM (ip FD00:0::2 OR subnet fd00:0:0::/64 OR ip fd00::2) TO tag a BLOCK icmp6 TYPE 135",
            "FROM (ip fd00::2 OR subnet fd00::/64) TO tag \"a\" BLOCK icmp6 TYPE 135",
        ),
        // A tag with any value contains the tag with one.
        (
            "FROM (tag a = 1 OR tag a OR tag a = 2 OR tag b = 2 OR tag b = 1) TO any BLOCK udp PORT 53",
            "FROM (tag \"a\" OR tag \"b\" = \"1\" OR tag \"b\" = \"2\") TO any BLOCK udp PORT 53",
        ),
        // UTF-16 order: characters beyond the basic plane come before its last ones.
        (
            "FROM (tag \"\u{fb01}\" OR tag \"😀\") TO any BLOCK ah",
            "FROM (tag \"😀\" OR tag \"\u{fb01}\") TO any BLOCK ah",
        ),
    ]);
}

#[test]
fn ports_and_types_are_sorted_but_not_merged() {
    check(&[
        (
            "FROM any TO tag a ALLOW tcp (PORT 1002 AND PORT 10 AND PORT 80 AND PORT 10)",
            "FROM any TO tag \"a\" ALLOW tcp (PORT 10 AND PORT 10 AND PORT 80 AND PORT 1002)",
        ),
        ("FROM any TO tag a ALLOW tcp PORTS 1002, 80", "FROM any TO tag \"a\" ALLOW tcp (PORT 80 AND PORT 1002)"),
        ("FROM any TO tag a ALLOW tcp ports 443", "FROM any TO tag \"a\" ALLOW tcp PORT 443"),
        (
            "FROM any TO tag a ALLOW tcp PORTS 1002, 20-40,10,6 - 11 ,30- 31",
            "FROM any TO tag \"a\" ALLOW tcp PORTS 6 - 11, 10, 20 - 40, 30 - 31, 1002",
        ),
        ("FROM any TO tag a ALLOW tcp PORTS 50-50", "FROM any TO tag \"a\" ALLOW tcp PORTS 50 - 50"),
        ("FROM any TO tag a ALLOW udp PORTS ALL", "FROM any TO tag \"a\" ALLOW udp PORT all"),
        (
            "FROM any TO tag a ALLOW icmp (TYPE 8 CODE 0 AND TYPE 3 CODE 11 AND TYPE 40 AND TYPE 3 CODE 1 AND TYPE 3)",
            "FROM any TO tag \"a\" ALLOW icmp (TYPE 3 AND TYPE 3 CODE 1 AND TYPE 3 CODE 11 AND TYPE 8 CODE 0 AND TYPE 40)",
        ),
        ("FROM any TO tag a ALLOW icmp6 (type all)", "FROM any TO tag \"a\" ALLOW icmp6 TYPE all"),
        ("FROM any TO all vms ALLOW icmp TYPE 8 CODE 0", "FROM any TO all vms ALLOW icmp TYPE 8 CODE 0"),
    ]);
}

#[test]
fn priority_zero_is_silent() {
    check(&[
        ("FROM any TO tag a ALLOW tcp PORT 80 priority 0", "FROM any TO tag \"a\" ALLOW tcp PORT 80"),
        ("FROM any TO tag a ALLOW tcp PORT all PRIORITY 100", "FROM any TO tag \"a\" ALLOW tcp PORT all PRIORITY 100"),
        ("FROM any TO tag a BLOCK esp PRIORITY 7", "FROM any TO tag \"a\" BLOCK esp PRIORITY 7"),
        (
            "FROM any TO tag a ALLOW icmp TYPE 8 CODE 0 PRIORITY 20",
            "FROM any TO tag \"a\" ALLOW icmp TYPE 8 CODE 0 PRIORITY 20",
        ),
    ]);
}

#[test]
fn tags_may_have_any_name() {
    // (as typed between quotes, as canonical between quotes)
    let cases = [
        ("some tag", "some tag"),
        ("1.2.3.0\\/24", "1.2.3.0/24"),
        ("all vms", "all vms"),
        ("(", "\\("),
        ("\\)", "\\)"),
        ("\\\"\\\\", "\\\"\\\\"),
        ("\t\\n\\b\u{c}\\r", "\\t\\n\\b\\f\\r"),
        ("\\u0020\\u0009\\u00a0", " \\t\\u00A0"),
        ("\u{1}\u{7f}\u{200b}\u{feff}", "\\u0001\\u007F\\u200B\\uFEFF"),
        ("김치=☃", "김치=☃"),
        ("\\u26C4\\uD83D\\ude00", "⛄😀"),
        ("", ""),
    ];
    for (typed, expected) in cases {
        let text = format!("FROM tag \"{typed}\" = \"{typed}\" TO any BLOCK ah");
        assert_eq!(canonical(&text), format!("FROM tag \"{expected}\" = \"{expected}\" TO any BLOCK ah"), "{typed}");
    }
    for word in ["foo", "foo-bar", "_", "00", "01", "From", "to-do", "x1", "hasOwnProperty"] {
        let text = format!("FROM tag {word}={word} TO any BLOCK ah");
        assert_eq!(canonical(&text), format!("FROM tag \"{word}\" = \"{word}\" TO any BLOCK ah"));
    }
}

#[test]
fn errors_say_what_would_be_right_and_where() {
    check(&[
        ("", "error: expected FROM, found the end, at character 0"),
        ("invalid", "error: expected FROM, found \"invalid\", at character 0"),
        ("From any TO tag a ALLOW ah", "error: expected FROM, found \"From\", at character 0"),
        (
            "FROM foo TO any ALLOW ah",
            "error: expected one of \"(\", ANY, ALL VMS, IP, SUBNET, TAG and VM, found \"foo\", at character 5",
        ),
        ("FROM any TO tag a ALLOW tcp", "error: expected PORT or PORTS after tcp, found the end, at character 27"),
        (
            "FROM any TO tag a ALLOW tcp  TYPE 8",
            "error: expected PORT or PORTS after tcp, found \"TYPE\", at character 29",
        ),
        (
            "FROM any TO tag é ALLOW tcp",
            "error: expected a tag's name after TAG, in quotes unless it is a word, found \"é\", at character 16",
        ),
        (
            "FROM any TO tag \"é\" PASS tcp",
            "error: expected ALLOW or BLOCK after the TO targets, found \"PASS\", at character 20",
        ),
        (
            "FROM any TO tag to ALLOW ah",
            "error: expected a tag's name after TAG; quote it to use a word of the language, found \"to\", at character 16",
        ),
        ("FROM any tag a ALLOW ah", "error: expected TO after the FROM targets, found \"tag\", at character 9"),
        ("FROM any TO all ALLOW ah", "error: expected VMS after ALL, found \"ALLOW\", at character 16"),
        (
            "FROM (all vms OR tag a) TO any ALLOW ah",
            "error: expected \")\": ANY and ALL VMS stand alone, found \"OR\", at character 14",
        ),
        (
            "FROM (tag a OR any) TO any ALLOW ah",
            "error: expected one of IP, SUBNET, TAG and VM after OR, found \"any\", at character 15",
        ),
        ("FROM (tag a xor tag b) TO any ALLOW ah", "error: expected OR or \")\", found \"xor\", at character 12"),
        (
            "FROM tag a TO any ALLOW sctp PORT 80",
            "error: expected one of TCP, UDP, ICMP, ICMP6, AH and ESP after the action, found \"sctp\", at character 24",
        ),
        (
            "FROM tag a TO any ALLOW tcp (PORT 1 AND PORT all)",
            "error: port number \"all\" is invalid: it must be a number from 1 to 65535, at character 45",
        ),
        (
            "FROM tag a TO any ALLOW tcp (PORT all AND PORT 1)",
            "error: expected \")\": PORT ALL stands alone, found \"AND\", at character 38",
        ),
        ("FROM tag a TO any ALLOW ah ah", "error: expected the end of the rule, found \"ah\", at character 27"),
        ("FROM tag \"a TO any ALLOW ah", "error: the quote at character 9 is never closed"),
        (
            "FROM tag \"é\\x\" TO any ALLOW ah",
            "error: \"\\x\" TO\" at character 11 is not an escape; known are \\\" \\\\ \\/ \\( \\) \\b \\f \\n \\r \\t and \\uXXXX",
        ),
    ]);
    for broken in ["\\uD83D", "\\uDE00", "\\uD83Dx", "\\u12", "\\u12g4", "\\u+123", "\\"] {
        assert!(format!("FROM tag \"{broken}\" TO any ALLOW ah").parse::<Rule>().is_err(), "{broken}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    let number = |what: &str, text: &str, min: u32, max: u32, at: usize| {
        format!("error: {what} \"{text}\" is invalid: it must be a number from {min} to {max}, at character {at}")
    };
    for port in ["0", "65536", "99999999999999999999", "ssh", "_", "1.0"] {
        let shown = port.split('.').next().unwrap();
        let expected = number("port number", shown, 1, 65_535, 33);
        let expected = if port == "1.0" {
            "error: expected the end of the rule, found \".\", at character 34".to_owned()
        } else {
            expected
        };
        assert_eq!(canonical(&format!("FROM tag a TO any ALLOW tcp PORT {port}")), expected);
    }
    let tcp = "FROM tag a TO any ALLOW tcp PORTS";
    assert_eq!(canonical(&format!("{tcp} bar-20")), number("port number", "bar", 1, 65_535, 34));
    assert_eq!(canonical(&format!("{tcp} 20-bar")), number("port number", "bar", 1, 65_535, 37));
    assert_eq!(
        canonical(&format!("{tcp} 20 - 10")),
        "error: the end of the range (10) cannot be less than the start (20)"
    );
    assert_eq!(
        canonical(&format!("{tcp} 1-20-30")),
        "error: expected the end of the rule, found \"-30\", at character 38"
    );
    assert_eq!(canonical(&format!("{tcp} 1-")), "error: expected the port number, found the end, at character 36");
    let icmp = "FROM tag a TO any ALLOW icmp TYPE";
    assert_eq!(canonical(&format!("{icmp} 256")), number("ICMP type", "256", 0, 255, 34));
    assert_eq!(canonical(&format!("{icmp} 8 CODE 270")), number("ICMP code", "270", 0, 255, 41));
    assert_eq!(canonical(&format!("{icmp} 8 PRIORITY 101")), number("priority level", "101", 0, 100, 45));
    assert_eq!(canonical(&format!("{icmp} 8 PRIORITY soon")), number("priority level", "soon", 0, 100, 45));
}

#[test]
fn addresses_and_ids_are_whole() {
    check(&[
        (
            "FROM ip 10.99.99.99.254 TO tag a ALLOW ah",
            "error: IP address \"10.99.99.99.254\" is invalid, at character 8",
        ),
        ("FROM ip 0.0.0.0 TO tag a ALLOW ah", "error: IP address \"0.0.0.0\" is invalid, at character 8"),
        (
            "FROM ip 255.255.255.255 TO tag a ALLOW ah",
            "error: IP address \"255.255.255.255\" is invalid, at character 8",
        ),
        ("FROM ip fd00::12345 TO tag a ALLOW ah", "error: IP address \"fd00::12345\" is invalid, at character 8"),
        (
            "FROM ip ::ffff:10.0.0.1 TO tag a ALLOW ah",
            "error: IP address \"::ffff:10.0.0.1\" is invalid, at character 8",
        ),
        (
            "FROM subnet 10.350.0.0/24 TO tag a ALLOW ah",
            "error: subnet \"10.350.0.0/24\" is invalid (bad address component), at character 12",
        ),
        (
            "FROM subnet 10.8.0.0/33 TO tag a ALLOW ah",
            "error: subnet \"10.8.0.0/33\" is invalid (bad prefix length), at character 12",
        ),
        (
            "FROM subnet 10.8.0.0/5 TO tag a ALLOW ah",
            "error: subnet \"10.8.0.0/5\" is invalid (bits set to right of mask), at character 12",
        ),
        (
            "FROM subnet fd00::/130 TO tag a ALLOW ah",
            "error: subnet \"fd00::/130\" is invalid (bad prefix length), at character 12",
        ),
        (
            "FROM subnet fd00::/2 TO tag a ALLOW ah",
            "error: subnet \"fd00::/2\" is invalid (bits set to right of mask), at character 12",
        ),
        (
            "FROM subnet 10.0.0.0 TO tag a ALLOW ah",
            "error: expected \"/\" and a prefix length after the subnet's address, found \"TO\", at character 21",
        ),
        ("FROM vm asdf TO any ALLOW ah", "error: UUID \"asdf\" is invalid, at character 8"),
    ]);
}

#[test]
fn rules_make_sense_as_a_whole() {
    check(&[
        (
            "FROM any TO any ALLOW tcp PORT 53",
            "error: rule does not affect VMs: at least one side must be a tag, a vm or all vms",
        ),
        (
            "FROM ip 10.8.0.1 TO subnet 10.9.0.0/16 ALLOW tcp PORT 53",
            "error: rule does not affect VMs: at least one side must be a tag, a vm or all vms",
        ),
        (
            "FROM all vms TO ip fd00::45 BLOCK icmp TYPE 8",
            "error: rule affects ICMPv4 but contains ip fd00::45, which is of the other family",
        ),
        (
            "FROM all vms TO subnet 10.0.0.0/8 BLOCK icmp6 TYPE 128",
            "error: rule affects ICMPv6 but contains subnet 10.0.0.0/8, which is of the other family",
        ),
    ]);
}

/// `prefix 1 between prefix 2 between …`.
fn list(count: usize, prefix: &str, between: &str) -> String {
    let items: Vec<String> = (1..=count).map(|number| format!("{prefix}{number}")).collect();
    items.join(between)
}

#[test]
fn limits_hold() {
    let targets = |count| list(count, "ip 10.0.0.", " OR ");
    assert!(format!("FROM ({}) TO all vms ALLOW ah", targets(24)).parse::<Rule>().is_ok());
    assert_eq!(
        canonical(&format!("FROM ({}) TO all vms ALLOW ah", targets(25))),
        "error: maximum of 24 targets allowed per side; FROM has 25"
    );
    assert_eq!(
        canonical(&format!("FROM all vms TO ({}) ALLOW ah", targets(25))),
        "error: maximum of 24 targets allowed per side; TO has 25"
    );
    let ports = |count| format!("FROM tag a TO any BLOCK tcp ({})", list(count, "PORT ", " AND "));
    let types = |count| format!("FROM tag a TO any BLOCK icmp ({})", list(count, "TYPE ", " AND "));
    assert!(ports(24).parse::<Rule>().is_ok() && types(24).parse::<Rule>().is_ok());
    assert_eq!(canonical(&ports(25)), "error: maximum of 24 ports allowed; 25 are given");
    assert_eq!(canonical(&types(25)), "error: maximum of 24 types allowed; 25 are given");
    let in_3 = |text: &str| Rule::parse_as(text, Language::V3);
    assert!(in_3(&ports(8)).is_ok() && in_3(&types(8)).is_ok());
    assert_eq!(in_3(&ports(9)), Err(RuleError::TooManyPorts { what: "ports", count: 9, max: 8 }));
    assert_eq!(in_3(&types(9)), Err(RuleError::TooManyPorts { what: "types", count: 9, max: 8 }));
}

#[test]
fn every_version_has_its_limits() {
    let vm = |number: usize| format!("vm 0f570678-c007-4610-a2c0-{number:012}");
    // Targets of every kind count alike, and each side by itself.
    let targets = |count: usize| {
        let kind = |number: usize| match number % 4 {
            0 => format!("ip 10.0.0.{number}"),
            1 => format!("subnet 10.{number}.0.0/16"),
            2 => format!("tag t{number} = v"),
            _ => vm(number),
        };
        (1..=count).map(kind).collect::<Vec<_>>().join(" OR ")
    };
    let several = |word: &str, count| list(count, &format!("{word} "), " AND ");
    for language in [Language::V1, Language::V2, Language::V3, Language::V4] {
        let max = if language < Language::V4 { 8 } else { 24 };
        let parse = |text: &str| Rule::parse_as(text, language);
        let both = format!("FROM ({}) TO ({}) ALLOW tcp PORT 80", targets(24), targets(24));
        let whole = parse(&both).unwrap_or_else(|error| panic!("{language:?}: {error}"));
        assert_eq!((whole.from().list().len(), whole.to().list().len()), (24, 24), "{language:?}");
        for (text, side) in [
            (format!("FROM ({}) TO ({}) ALLOW tcp PORT 80", targets(25), targets(24)), "FROM"),
            (format!("FROM ({}) TO ({}) ALLOW tcp PORT 80", targets(24), targets(25)), "TO"),
            // One that is said twice was said.
            (format!("FROM any TO ({} OR tag t2 = v) ALLOW tcp PORT 80", targets(24)), "TO"),
        ] {
            assert_eq!(
                parse(&text),
                Err(RuleError::TooManyTargets { side, count: 25, max: 24 }),
                "{language:?}: {text}"
            );
        }
        for (what, text) in [
            ("ports", |list: &str| format!("FROM any TO tag a ALLOW tcp ({list})")),
            ("ports", |list: &str| format!("FROM any TO tag a ALLOW udp ({list})")),
            ("types", |list: &str| format!("FROM any TO tag a ALLOW icmp ({list})")),
        ] as [(_, fn(&str) -> String); 3]
        {
            let word = if what == "ports" { "PORT" } else { "TYPE" };
            assert!(parse(&text(&several(word, max))).is_ok(), "{language:?} {what}");
            let over = RuleError::TooManyPorts { what, count: max + 1, max };
            assert_eq!(parse(&text(&several(word, max + 1))), Err(over), "{language:?}");
        }
        if language >= Language::V2 {
            let ranges = |count: usize| {
                let range = |number: usize| format!("{}-{}", number * 10, number * 10 + 5);
                format!("FROM any TO tag a ALLOW tcp PORTS {}", (1..=count).map(range).collect::<Vec<_>>().join(","))
            };
            assert!(parse(&ranges(max)).is_ok(), "{language:?}");
            assert_eq!(parse(&ranges(max + 1)), Err(RuleError::TooManyPorts { what: "ports", count: max + 1, max }));
        }
        if language >= Language::V3 {
            assert!(parse(&format!("FROM any TO tag a ALLOW icmp6 ({})", several("TYPE", max))).is_ok());
            assert!(parse(&format!("FROM any TO tag a ALLOW icmp6 ({})", several("TYPE", max + 1))).is_err());
        }
    }
}

#[test]
fn words_are_of_one_case_and_either_will_do() {
    let rules = [
        "FROM (IP 10.0.0.1 OR SUBNET 10.0.0.0/8 OR VM 0f570678-c007-4610-a2c0-bbfcaab9f4e6) TO ALL VMS ALLOW TCP (PORT 1 AND PORT 2) PRIORITY 3",
        "FROM ANY TO TAG \"x\" BLOCK ICMP (TYPE 3 CODE 1 AND TYPE 8)",
        "FROM ALL VMS TO ANY BLOCK UDP PORTS 1-2",
        "FROM ALL VMS TO ANY ALLOW ICMP6 TYPE ALL",
        "FROM ALL VMS TO ANY ALLOW AH",
        "FROM ALL VMS TO ANY ALLOW ESP",
    ];
    for upper in rules {
        let rule: Rule = upper.parse().unwrap_or_else(|error| panic!("{upper}: {error}"));
        assert_eq!(upper.to_lowercase().parse::<Rule>().as_ref(), Ok(&rule), "{upper}");
        for word in
            upper.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.starts_with(char::is_uppercase))
        {
            let mixed = format!("{}{}", &word[..1], word[1..].to_lowercase());
            assert!(upper.replacen(word, &mixed, 1).parse::<Rule>().is_err(), "{mixed} in {upper}");
        }
    }
}

#[test]
fn texts_are_bounded_also_in_canonical_form() {
    let long = |name: &str, count: usize| format!("FROM tag \"{}\" TO any BLOCK ah", name.repeat(count));
    assert!(long("a", 16_000).parse::<Rule>().is_ok());
    assert_eq!(canonical(&long("a", 17_000)), "error: rule has 17027 bytes; at most 16384 are allowed");
    assert_eq!(
        canonical(&long("\u{1}", 4_000)),
        "error: rule has 24027 bytes in its canonical form; at most 16384 are allowed"
    );
}

#[test]
fn older_languages_refuse_what_they_do_not_have() {
    let cases = [
        ("FROM tag a TO tag b ALLOW tcp PORTS 20-30", Language::V2, "port ranges"),
        ("FROM tag a TO ip fd00::1 ALLOW tcp PORT 80", Language::V3, "IPv6"),
        ("FROM tag a TO subnet fd00::/64 ALLOW tcp PORT 80", Language::V3, "IPv6"),
        ("FROM tag a TO tag b ALLOW icmp6 TYPE 135", Language::V3, "IPv6"),
        ("FROM tag a TO tag b ALLOW icmp TYPE ALL", Language::V3, "all ICMP types"),
        ("FROM tag a TO tag b ALLOW tcp PORT 80 PRIORITY 1", Language::V4, "priority levels"),
        ("FROM tag a TO tag b ALLOW ah", Language::V4, "AH"),
        ("FROM tag a TO tag b ALLOW esp", Language::V4, "ESP"),
    ];
    for (text, since, feature) in cases {
        for language in [Language::V1, Language::V2, Language::V3, Language::V4] {
            let parsed = Rule::parse_as(text, language);
            if language < since {
                assert_eq!(parsed, Err(RuleError::TooNew { feature, since: since as u8 }), "{text} in {language:?}");
            } else {
                assert!(parsed.is_ok(), "{text} in {language:?}");
            }
        }
    }
}

#[test]
fn a_rule_travels_as_its_text() {
    let rule: Rule = "from any to tag www allow tcp port 80".parse().unwrap();
    assert_eq!(serde_json::to_string(&rule).unwrap(), r#""FROM any TO tag \"www\" ALLOW tcp PORT 80""#);
    assert_eq!(serde_json::from_str::<Rule>(r#""FROM any TO tag www ALLOW tcp PORT 80""#).unwrap(), rule);
    assert!(serde_json::from_str::<Rule>(r#""FROM any TO any ALLOW ah""#).is_err());
}

/// Pieces of rules in any order: texts that get far into the parser.
fn soup() -> impl Strategy<Value = String> {
    let pieces = [
        "FROM",
        "from",
        "TO",
        "any",
        "all",
        "vms",
        "(",
        ")",
        "OR",
        "AND",
        "tag",
        "a",
        "\"",
        "\\",
        "\\u",
        "\\uD83D",
        "=",
        "ip",
        "10.0.0.1",
        "fd00::1",
        "subnet",
        "10.0.0.0/8",
        "/",
        "vm",
        VM_1,
        "ALLOW",
        "tcp",
        "icmp",
        "PORT",
        "PORTS",
        "80",
        "-",
        ",",
        "TYPE",
        "CODE",
        "PRIORITY",
        "ah",
        "é",
        "\u{feff}",
        "😀",
    ];
    proptest::collection::vec((proptest::sample::select(pieces.to_vec()), any::<bool>()), 0..30).prop_map(|pieces| {
        pieces.into_iter().flat_map(|(piece, space)| [piece, if space { " " } else { "" }]).collect()
    })
}

/// Whatever a text is, the parser answers; and what it takes has a canonical text that it takes for the same rule.
fn check_any(text: &str) -> Result<(), TestCaseError> {
    for language in [Language::V1, Language::V4] {
        if let Ok(rule) = Rule::parse_as(text, language) {
            let canonical = rule.to_string();
            prop_assert_eq!(&Rule::parse_as(&canonical, language), &Ok(rule.clone()));
            prop_assert_eq!(canonical.parse::<Rule>(), Ok(rule), "a newer language means the same");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn canonical_text_is_the_same_rule(rule in worlds::strange_rule()) {
        let text = rule.to_string();
        let again: Rule = text.parse().map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        prop_assert_eq!(&again, &rule);
        prop_assert_eq!(again.to_string(), text);
    }

    #[test]
    fn no_text_is_too_strange(text in any::<String>()) {
        check_any(&text)?;
    }

    #[test]
    fn no_soup_is_too_thick(text in soup()) {
        check_any(&text)?;
    }

    #[test]
    fn damaged_rules_are_answered(rule in worlds::strange_rule(), at in any::<prop::sample::Index>(), with in any::<char>()) {
        let mut characters: Vec<char> = rule.to_string().chars().collect();
        let at = at.index(characters.len());
        characters[at] = with;
        check_any(&characters.iter().collect::<String>())?;
        characters.remove(at);
        check_any(&characters.iter().collect::<String>())?;
        check_any(&characters[..at].iter().collect::<String>())?;
    }
}
