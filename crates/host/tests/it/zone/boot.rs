//! Booting, halting, what a zone sees of itself.

use std::time::Duration;

use host::zone::Zones;

use super::site::Site;

#[test]
fn a_zone_boots_with_a_world_of_its_own() {
    let site = Site::new();
    let spec = site.spec("boots", "id -u; hostname; cat /proc/self/uid_map; cat /etc/resolv.conf; ps; exit 7");
    let text = site.output(&spec);
    println!("{text}");
    let status = site.zones().status(spec.instance).expect("status");
    println!("{status:?}");
    assert_eq!(status.exit.expect("ended").code, Some(7));
}
