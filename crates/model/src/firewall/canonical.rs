//! A rule's canonical text: what is stored, sent and shown, whatever was typed.
//!
//! Big words are upper case, names of things lower case; tags are always quoted; ports and types are in parentheses when there
//! are several, and ports are a `PORTS` list as soon as one of them is a range; priority 0 is silent. Parsing the text gives the
//! same rule, and so the text of that is the same text.
//!
//! In quotes, characters that print nothing or look like a space are escaped, so that a reader sees them, and parentheses are,
//! because the oldest parsers of this language wanted it.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::rule::{Action, IcmpType, IcmpTypes, Port, Ports, Protocol, Rule, Target, Targets};

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action() {
            Action::Allow => "ALLOW",
            Action::Block => "BLOCK",
        };
        write!(f, "FROM {} TO {} {action} {}", self.from(), self.to(), self.protocol())?;
        if self.priority() > 0 {
            write!(f, " PRIORITY {}", self.priority())?;
        }
        Ok(())
    }
}

impl Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::AllVms => f.write_str("all vms"),
            Self::List(targets) => several(f, targets, " OR "),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "ip {address}"),
            Self::Subnet(subnet) => write!(f, "subnet {subnet}"),
            Self::Vm(id) => write!(f, "vm {id}"),
            Self::Tag { name, value: None } => write!(f, "tag {}", Quoted(name)),
            Self::Tag { name, value: Some(value) } => write!(f, "tag {} = {}", Quoted(name), Quoted(value)),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.as_str();
        match self {
            Self::Tcp(ports) | Self::Udp(ports) => write!(f, "{name} {ports}"),
            Self::Icmp(types) | Self::Icmp6(types) => write!(f, "{name} {types}"),
            Self::Ah | Self::Esp => f.write_str(name),
        }
    }
}

impl Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::List(ports) = self else { return f.write_str("PORT all") };
        if !ports.iter().any(|port| matches!(port, Port::Range(..))) {
            let ports: Vec<String> = ports.iter().map(|port| format!("PORT {}", port.first())).collect();
            return several(f, &ports, " AND ");
        }
        f.write_str("PORTS ")?;
        joined(f, ports, ", ")
    }
}

impl Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(port) => write!(f, "{port}"),
            Self::Range(first, last) => write!(f, "{first} - {last}"),
        }
    }
}

impl Display for IcmpTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("TYPE all"),
            Self::List(types) => several(f, types, " AND "),
        }
    }
}

impl Display for IcmpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TYPE {}", self.kind)?;
        self.code.map_or(Ok(()), |code| write!(f, " CODE {code}"))
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text in quotes, with escapes where they are wanted.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' | '(' | ')' => write!(f, "\\{character}")?,
                '\u{8}' => f.write_str("\\b")?,
                '\t' => f.write_str("\\t")?,
                '\n' => f.write_str("\\n")?,
                '\u{c}' => f.write_str("\\f")?,
                '\r' => f.write_str("\\r")?,
                _ if is_invisible(character) => write!(f, "\\u{:04X}", u32::from(character))?,
                _ => f.write_char(character)?,
            }
        }
        f.write_char('"')
    }
}

/// Controls of ASCII, and what Unicode has for spaces and for nothing at all. All are in the basic plane: four digits do.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\0'..='\u{1f}' | '\u{7f}' | '\u{85}' | '\u{a0}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200d}'
        | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{2060}' | '\u{3000}' | '\u{feff}')
}

/// One as it is, several in parentheses.
fn several(f: &mut fmt::Formatter<'_>, items: &[impl Display], between: &str) -> fmt::Result {
    if let [item] = items {
        return item.fmt(f);
    }
    f.write_char('(')?;
    joined(f, items, between)?;
    f.write_char(')')
}

fn joined(f: &mut fmt::Formatter<'_>, items: &[impl Display], between: &str) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}
