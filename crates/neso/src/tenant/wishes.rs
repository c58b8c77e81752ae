//! What people type of the addresses they want on networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cloudapi::types::NetworkChoice;
use model::id::MacAddr;

use crate::failure::{Failure, Outcome};

/// `MAC=IPV6,…`.
pub(crate) fn addresses6(text: &str) -> Result<(MacAddr, Vec<Ipv6Addr>), String> {
    let (mac, list) = text.split_once('=').ok_or("give MAC=IPV6, several between commas")?;
    let mac = mac.parse().map_err(|_| format!("\"{mac}\" is not an Ethernet address"))?;
    let one = |ip: &str| ip.trim().parse().map_err(|_| format!("\"{ip}\" is not an IPv6 address"));
    Ok((mac, list.split(',').map(one).collect::<Result<_, _>>()?))
}

/// A network, and the addresses asked for on it, of `NETWORK[=IP,…]`. What follows a `=` and is no address belongs to the name.
pub(super) fn wish(text: &str) -> Outcome<(&str, Vec<Ipv4Addr>, Vec<Ipv6Addr>)> {
    let nothing = (text, Vec::new(), Vec::new());
    let Some((network, list)) = text.rsplit_once('=') else { return Ok(nothing) };
    let parsed: Vec<Result<IpAddr, &str>> = list.split(',').map(|ip| ip.trim().parse().map_err(|_| ip)).collect();
    if parsed.iter().all(Result::is_err) {
        return Ok(nothing);
    }
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for ip in parsed {
        match ip {
            Ok(IpAddr::V4(ip)) => four.push(ip),
            Ok(IpAddr::V6(ip)) => six.push(ip),
            Err(wrong) => return Err(Failure::new(format!("\"{wrong}\" in \"{text}\" is not an IP address"))),
        }
    }
    Ok((network, four, six))
}

/// The contract takes ids alone or objects alone.
pub(super) fn same_form(choices: &mut [NetworkChoice]) {
    if choices.iter().all(|choice| matches!(choice, NetworkChoice::Id(_))) {
        return;
    }
    for choice in choices {
        if let NetworkChoice::Id(id) = choice {
            *choice =
                NetworkChoice::Object { ipv4_uuid: *id, ipv4_ips: Vec::new(), ipv6_ips: Vec::new(), primary: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_follow_a_networks_name() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let said = |text| {
            let (network, four, six) = wish(text).unwrap();
            let all = four.into_iter().map(IpAddr::V4).chain(six.into_iter().map(IpAddr::V6)).collect::<Vec<_>>();
            (network.to_owned(), all)
        };
        assert_eq!(said("web"), ("web".to_owned(), vec![]));
        assert_eq!(said("a=b"), ("a=b".to_owned(), vec![]), "a name may have one");
        assert_eq!(said("a=b=fd00::9, 10.3.0.9"), ("a=b".to_owned(), vec![ip("10.3.0.9"), ip("fd00::9")]));
        assert!(wish("web=10.3.0.9,x").unwrap_err().message.contains("\"x\" in"));
        assert!(addresses6("90:b8:d0:00:00:01=fd00::1,fd00::2").is_ok_and(|(_, ips)| ips.len() == 2));
        assert!(addresses6("90:b8:d0:00:00:01=10.0.0.1").unwrap_err().contains("is not an IPv6 address"));
        assert!(addresses6("fd00::1").is_err());
    }
}
