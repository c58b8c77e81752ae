//! From text to [`Rule`].
//!
//! The grammar, where words are all lower or all upper case and space is free between them:
//!
//! ```text
//! rule     = FROM targets TO targets ( ALLOW | BLOCK ) protocol [ PRIORITY number ]
//! targets  = any | all vms | target | "(" any ")" | "(" all vms ")" | "(" target { OR target } ")"
//! target   = IP address | SUBNET address "/" number | TAG text [ "=" text ] | VM uuid
//! protocol = ( TCP | UDP ) ports | ( ICMP | ICMP6 ) types | AH | ESP
//! ports    = port | "(" port { AND port } ")" | PORT ALL | "(" PORT ALL ")" | PORTS ALL | PORTS range { "," range }
//! port     = PORT number                range = number [ "-" number ]
//! types    = type | "(" type { AND type } ")" | TYPE ALL | "(" TYPE ALL ")"
//! type     = TYPE number [ CODE number ]
//! text     = word | quoted              word  = { letter | digit | "-" | "_" }, but none of the words above
//! ```
//!
//! There is no separate lexer: whether `80-90` is a word or a range depends on where it stands, so the parser asks for what may
//! come next. It reads each character a bounded number of times and never recurses.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

use super::{
    RuleError,
    rule::{
        Action, HOST_BITS, IcmpType, IcmpTypes, PRIORITY_MAX, Port, Ports, Protocol, Rule, TEXT_MAX_BYTES, Target,
        Targets, is_peer,
    },
};
use crate::id::InstanceId;

/// Versions of the language. A text that is right in one is right in all later ones and means the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// The first.
    V1 = 1,
    /// With `PORTS` and ranges.
    V2,
    /// With IPv6, `ICMP6` and `TYPE ALL`.
    V3,
    /// With `PRIORITY`, `AH`, `ESP`, and 24 ports or types where there were 8.
    V4,
}

impl Language {
    /// The newest.
    pub const CURRENT: Self = Self::V4;
}

/// Words that must be quoted to be a tag's name or value.
const KEYWORDS: [&str; 24] = [
    "from", "to", "ip", "subnet", "any", "all", "tag", "vm", "vms", "or", "and", "block", "allow", "port", "ports",
    "tcp", "udp", "icmp", "icmp6", "ah", "esp", "type", "code", "priority",
];

/// Characters of a strange piece of text that an error repeats.
const FOUND_MAX: usize = 24;

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::parse_as(text, Language::CURRENT)
    }
}

impl Rule {
    /// Reads a rule that uses nothing newer than `language`.
    pub fn parse_as(text: &str, language: Language) -> Result<Self, RuleError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(RuleError::TooLong { bytes: text.len(), max: TEXT_MAX_BYTES, canonical: false });
        }
        let mut parser = Parser { text, at: 0, language };
        parser.expect("from", "FROM")?;
        let from = parser.targets()?;
        parser.expect("to", "TO after the FROM targets")?;
        let to = parser.targets()?;
        let action = parser.action()?;
        let protocol = parser.protocol()?;
        let priority = parser.priority()?;
        parser.skip_space();
        if parser.at < text.len() {
            return Err(parser.unexpected("the end of the rule"));
        }
        Self::in_language(language, Self::unchecked(from, to, action, protocol, priority))
    }
}

/// A text and how far it is read.
struct Parser<'a> {
    text: &'a str,
    /// In bytes, always at the start of a character.
    at: usize,
    language: Language,
}

impl<'a> Parser<'a> {
    fn targets(&mut self) -> Result<Targets, RuleError> {
        if !self.eat('(') {
            return match self.everything()? {
                Some(targets) => Ok(targets),
                None => Ok(Targets::List(vec![self.target("one of \"(\", ANY, ALL VMS, IP, SUBNET, TAG and VM")?])),
            };
        }
        if let Some(targets) = self.everything()? {
            self.close("\")\": ANY and ALL VMS stand alone")?;
            return Ok(targets);
        }
        let mut targets = vec![self.target("one of ANY, ALL VMS, IP, SUBNET, TAG and VM")?];
        while self.keyword("or") {
            targets.push(self.target("one of IP, SUBNET, TAG and VM after OR")?);
        }
        self.close("OR or \")\"")?;
        Ok(Targets::List(targets))
    }

    /// `ANY` or `ALL VMS`.
    fn everything(&mut self) -> Result<Option<Targets>, RuleError> {
        if self.keyword("any") {
            Ok(Some(Targets::Any))
        } else if self.keyword("all") {
            self.expect("vms", "VMS after ALL")?;
            Ok(Some(Targets::AllVms))
        } else {
            Ok(None)
        }
    }

    fn target(&mut self, expected: &str) -> Result<Target, RuleError> {
        if self.keyword("ip") {
            let (text, at) = self.address_text("an address after IP")?;
            let address = text.parse().ok().filter(|address| is_peer(*address));
            let address: IpAddr = address.ok_or_else(|| RuleError::Address { text: clip(text), at })?;
            self.check_family(address)?;
            Ok(Target::Ip(address))
        } else if self.keyword("subnet") {
            self.subnet().map(Target::Subnet)
        } else if self.keyword("tag") {
            let name = self.tag_text("a tag's name after TAG")?;
            let value = if self.eat('=') { Some(self.tag_text("a tag's value after \"=\"")?) } else { None };
            Ok(Target::Tag { name, value })
        } else if self.keyword("vm") {
            self.skip_space();
            let at = self.position();
            let text = self.word();
            if text.is_empty() {
                return Err(self.unexpected("an instance's UUID after VM"));
            }
            let id: InstanceId = text.parse().map_err(|_| RuleError::Uuid { text: clip(text), at })?;
            Ok(Target::Vm(id))
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn subnet(&mut self) -> Result<IpNet, RuleError> {
        let (address_text, at) = self.address_text("a subnet after SUBNET")?;
        if !self.eat('/') {
            return Err(self.unexpected("\"/\" and a prefix length after the subnet's address"));
        }
        let length = self.take_while(|character| character.is_ascii_alphanumeric());
        let failed = |why| RuleError::Subnet { text: clip(&format!("{address_text}/{length}")), why, at };
        let address: IpAddr = address_text.parse().map_err(|_| failed("bad address component"))?;
        if matches!(address, IpAddr::V6(address) if is_mapped(address)) {
            return Err(failed("bad address component"));
        }
        let bits = if length.len() <= 3 { length.parse::<u8>().ok() } else { None };
        let subnet = bits.and_then(|bits| IpNet::new(address, bits).ok()).ok_or_else(|| failed("bad prefix length"))?;
        if subnet.network() != address {
            return Err(failed(HOST_BITS));
        }
        self.check_family(address)?;
        Ok(subnet)
    }

    fn check_family(&self, address: IpAddr) -> Result<(), RuleError> {
        if address.is_ipv6() { self.since(Language::V3, "IPv6") } else { Ok(()) }
    }

    fn action(&mut self) -> Result<Action, RuleError> {
        if self.keyword("allow") {
            Ok(Action::Allow)
        } else if self.keyword("block") {
            Ok(Action::Block)
        } else {
            Err(self.unexpected("ALLOW or BLOCK after the TO targets"))
        }
    }

    fn protocol(&mut self) -> Result<Protocol, RuleError> {
        if self.keyword("tcp") {
            self.ports("tcp").map(Protocol::Tcp)
        } else if self.keyword("udp") {
            self.ports("udp").map(Protocol::Udp)
        } else if self.keyword("icmp") {
            self.types("icmp").map(Protocol::Icmp)
        } else if self.keyword("icmp6") {
            self.since(Language::V3, "IPv6")?;
            self.types("icmp6").map(Protocol::Icmp6)
        } else if self.keyword("ah") {
            self.since(Language::V4, "AH")?;
            Ok(Protocol::Ah)
        } else if self.keyword("esp") {
            self.since(Language::V4, "ESP")?;
            Ok(Protocol::Esp)
        } else {
            Err(self.unexpected("one of TCP, UDP, ICMP, ICMP6, AH and ESP after the action"))
        }
    }

    fn ports(&mut self, protocol: &str) -> Result<Ports, RuleError> {
        if self.eat('(') {
            self.expect("port", "PORT after \"(\"")?;
            if self.keyword("all") {
                self.close("\")\": PORT ALL stands alone")?;
                return Ok(Ports::All);
            }
            let mut ports = vec![Port::One(self.port()?)];
            while self.keyword("and") {
                self.expect("port", "PORT after AND")?;
                ports.push(Port::One(self.port()?));
            }
            self.close("AND or \")\"")?;
            Ok(Ports::List(ports))
        } else if self.keyword("port") {
            if self.keyword("all") {
                return Ok(Ports::All);
            }
            Ok(Ports::List(vec![Port::One(self.port()?)]))
        } else if self.keyword("ports") {
            self.since(Language::V2, "port ranges")?;
            if self.keyword("all") {
                return Ok(Ports::All);
            }
            let mut ports = vec![self.port_range()?];
            while self.eat(',') {
                ports.push(self.port_range()?);
            }
            Ok(Ports::List(ports))
        } else {
            Err(self.unexpected(&format!("PORT or PORTS after {protocol}")))
        }
    }

    fn port(&mut self) -> Result<u16, RuleError> {
        self.number("port number", 1, u16::MAX)
    }

    fn port_range(&mut self) -> Result<Port, RuleError> {
        let start = self.port()?;
        if !self.eat('-') {
            return Ok(Port::One(start));
        }
        let end = self.port()?;
        if end < start {
            return Err(RuleError::Range { start, end });
        }
        Ok(Port::Range(start, end))
    }

    fn types(&mut self, protocol: &str) -> Result<IcmpTypes, RuleError> {
        let several = self.eat('(');
        self.expect("type", &format!("TYPE after {}", if several { "\"(\"" } else { protocol }))?;
        if self.keyword("all") {
            self.since(Language::V3, "all ICMP types")?;
            if several {
                self.close("\")\": TYPE ALL stands alone")?;
            }
            return Ok(IcmpTypes::All);
        }
        let mut types = vec![self.icmp_type()?];
        if several {
            while self.keyword("and") {
                self.expect("type", "TYPE after AND")?;
                types.push(self.icmp_type()?);
            }
            self.close("CODE, AND or \")\"")?;
        }
        Ok(IcmpTypes::List(types))
    }

    fn icmp_type(&mut self) -> Result<IcmpType, RuleError> {
        let kind = self.byte("ICMP type", u8::MAX)?;
        let code = if self.keyword("code") { Some(self.byte("ICMP code", u8::MAX)?) } else { None };
        Ok(IcmpType { kind, code })
    }

    fn priority(&mut self) -> Result<u8, RuleError> {
        if !self.keyword("priority") {
            return Ok(0);
        }
        self.since(Language::V4, "priority levels")?;
        self.byte("priority level", PRIORITY_MAX)
    }

    fn byte(&mut self, what: &'static str, max: u8) -> Result<u8, RuleError> {
        self.number(what, 0, max.into()).map(|number| u8::try_from(number).expect("a number of at most `max` fits"))
    }

    fn number(&mut self, what: &'static str, min: u16, max: u16) -> Result<u16, RuleError> {
        self.skip_space();
        let at = self.position();
        // Letters belong to it, so that an error shows the whole word; a hyphen does not, it makes a range.
        let text = self.take_while(|character| character.is_ascii_alphanumeric() || character == '_');
        if text.is_empty() {
            return Err(self.unexpected(&format!("the {what}")));
        }
        let number = if text.bytes().all(|digit| digit.is_ascii_digit()) { text.parse().ok() } else { None };
        let number = number.filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| RuleError::Number { what, text: clip(text), min, max, at })
    }

    /// Whatever may be meant as an address, and where it starts.
    fn address_text(&mut self, expected: &str) -> Result<(&'a str, usize), RuleError> {
        self.skip_space();
        let at = self.position();
        let text = self
            .take_while(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | ':' | '_' | '-'));
        if text.is_empty() { Err(self.unexpected(expected)) } else { Ok((text, at)) }
    }

    fn tag_text(&mut self, expected: &str) -> Result<String, RuleError> {
        self.skip_space();
        if self.text[self.at..].starts_with('"') {
            return self.quoted();
        }
        let start = self.at;
        let word = self.word();
        if word.is_empty() {
            return Err(self.unexpected(&format!("{expected}, in quotes unless it is a word")));
        }
        if KEYWORDS.iter().any(|keyword| is_keyword(word, keyword)) {
            self.at = start;
            return Err(self.unexpected(&format!("{expected}; quote it to use a word of the language")));
        }
        Ok(word.to_owned())
    }

    fn quoted(&mut self) -> Result<String, RuleError> {
        let opened = self.position();
        self.at += 1;
        let mut value = String::new();
        loop {
            let start = self.at;
            match self.next_char() {
                None => return Err(RuleError::UnclosedQuote { at: opened }),
                Some('"') => return Ok(value),
                Some('\\') => {
                    let character = self.escaped();
                    value.push(character.ok_or_else(|| {
                        let text = self.text[start..].chars().take(6).collect();
                        RuleError::Escape { text, at: self.text[..start].chars().count() }
                    })?);
                }
                Some(character) => value.push(character),
            }
        }
    }

    /// What comes after a backslash. Characters beyond the basic plane are written as two surrogates.
    fn escaped(&mut self) -> Option<char> {
        match self.next_char()? {
            character @ ('"' | '\\' | '/' | '(' | ')') => Some(character),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'u' => {
                let unit = self.utf16_unit()?;
                if !(0xd800..0xdc00).contains(&unit) {
                    return char::from_u32(unit.into());
                }
                let low =
                    self.text[self.at..].starts_with("\\u").then(|| self.at += 2).and_then(|()| self.utf16_unit())?;
                char::decode_utf16([unit, low]).next()?.ok()
            }
            _ => None,
        }
    }

    fn utf16_unit(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u16::from_str_radix(digits, 16).ok()
    }

    // === Words and characters ===

    fn expect(&mut self, keyword: &str, expected: &str) -> Result<(), RuleError> {
        if self.keyword(keyword) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn close(&mut self, expected: &str) -> Result<(), RuleError> {
        if self.eat(')') { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Reads `keyword`, given in lower case, if it is the next word.
    fn keyword(&mut self, keyword: &str) -> bool {
        self.skip_space();
        let start = self.at;
        let found = is_keyword(self.word(), keyword);
        if !found {
            self.at = start;
        }
        found
    }

    fn eat(&mut self, character: char) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(character);
        if found {
            self.at += character.len_utf8();
        }
        found
    }

    fn word(&mut self) -> &'a str {
        self.take_while(|character| character.is_ascii_alphanumeric() || matches!(character, '-' | '_'))
    }

    fn skip_space(&mut self) {
        self.take_while(|character| character.is_whitespace() || character == '\u{feff}');
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let taken = &rest[..rest.find(|character| !wanted(character)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn next_char(&mut self) -> Option<char> {
        let character = self.text[self.at..].chars().next()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn since(&self, language: Language, feature: &'static str) -> Result<(), RuleError> {
        if self.language < language {
            return Err(RuleError::TooNew { feature, since: language as u8 });
        }
        Ok(())
    }

    /// In characters from the start.
    fn position(&self) -> usize {
        self.text[..self.at].chars().count()
    }

    fn unexpected(&mut self, expected: &str) -> RuleError {
        self.skip_space();
        let at = self.position();
        let start = self.at;
        let word = self.word();
        let found = match self.text[start..].chars().next() {
            None => "the end".to_owned(),
            Some(_) if !word.is_empty() => format!("\"{}\"", clip(word)),
            Some('"') => "a quoted text".to_owned(),
            Some(character) => format!("\"{}\"", character.escape_debug()),
        };
        RuleError::Unexpected { expected: expected.to_owned(), found, at }
    }
}

/// All lower or all upper case.
fn is_keyword(word: &str, keyword: &str) -> bool {
    word == keyword || (word.eq_ignore_ascii_case(keyword) && !word.bytes().any(|byte| byte.is_ascii_lowercase()))
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

fn clip(text: &str) -> String {
    if text.chars().count() <= FOUND_MAX * 2 {
        return text.to_owned();
    }
    text.chars().take(FOUND_MAX).chain(['…']).collect()
}
