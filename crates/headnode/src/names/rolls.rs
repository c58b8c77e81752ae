//! A signed zone through the lives of its keys, judged by Debian's `dnssec-verify`. The clock is turned from some days ago to now.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base::clock::{ManualClock, SystemClock};
use control::{
    ControlConfig,
    names::{
        NamesConfig, ZoneConfig,
        keys::{self as kept, KeyMaker},
        publish_all,
    },
    tables::ZONE_KEYS,
};
use model::{
    id::InstanceId,
    names::{
        Data as Answer,
        dnssec::{KeyRole, KeyStage, MadeKey, ParentHas, RENEW_MS},
    },
};
use store::{Store, Transaction, memory::Memory};

use super::*;

const APEX: &str = "dc.example";
const HOUR: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    control: Control,
    clock: Arc<ManualClock>,
    seal: Seal,
    feed: Feed,
    /// What was served: when, by which tags the zone's own record was signed, and which keys it had.
    served: Vec<(i64, BTreeSet<u16>, BTreeSet<u16>)>,
    judged: BTreeSet<String>,
    _trigger: base::shutdown::Trigger,
    directory: tempfile::TempDir,
}

impl World {
    async fn new(signed: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("domain-").tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(SystemClock.now_ms() - 9 * 24 * 3_600_000));
        let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
        let control = Self::control(store, &clock, directory.path(), signed);
        publish_all(&control.0).await.unwrap();
        let authority = directory.path().join("ca.key");
        std::fs::write(&authority, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let seal = Seal::of_authority(&authority).unwrap();
        let feed = Feed::new(Some(seal.clone()), control.0.snapshot());
        let (served, judged) = (Vec::new(), BTreeSet::new());
        Self { control: control.0, clock, seal, feed, served, judged, _trigger: control.1, directory }
    }

    fn control(
        store: Store,
        clock: &Arc<ManualClock>,
        directory: &std::path::Path,
        signed: bool,
    ) -> (Control, base::shutdown::Trigger) {
        let mut config = ControlConfig::new("dc", directory.join("images"));
        let usual = NamesConfig::one(APEX);
        let zones = usual.zones.into_iter().map(|zone| ZoneConfig { signed, ..zone }).collect();
        config.names = NamesConfig { zones, ..NamesConfig::default() };
        let (trigger, shutdown) = Shutdown::new();
        (Control::start(store, clock.clone(), config, shutdown), trigger)
    }

    fn zone(&self) -> &Zone {
        &self.feed.served[APEX].zone
    }

    fn keys(&self) -> String {
        let Some(record) = self.control.snapshot().get(&ZONE_KEYS, APEX) else { return String::new() };
        let keys = record.keys.iter().map(|key| format!("{:?} {:?}", key.role, key.stage));
        keys.collect::<Vec<_>>().join(", ")
    }

    fn tag(&self, role: KeyRole, stage: KeyStage) -> u16 {
        let record = self.control.snapshot().get(&ZONE_KEYS, APEX).unwrap();
        record.keys.iter().find(|key| (key.role, key.stage) == (role, stage)).unwrap().tag
    }

    /// Time goes by; keys are tended, records followed, and what is served then is judged as soon as its keys are others.
    async fn after(&mut self, time: Duration) -> String {
        self.clock.advance(time);
        kept::tend(&self.control, &self.seal).await.unwrap();
        self.feed.follow(&self.control.snapshot(), None);
        let zone = self.zone();
        let tags = |signatures: Vec<&[u8]>| {
            signatures.into_iter().map(|data| u16::from_be_bytes([data[16], data[17]])).collect::<BTreeSet<u16>>()
        };
        let signers = tags(zone.soa_signatures().collect());
        let record = self.control.snapshot().get(&ZONE_KEYS, APEX).unwrap();
        let shown: BTreeSet<u16> = record.keys.iter().map(|key| key.tag).collect();
        let keys = zone.rrsets(zone.apex()).iter().find(|rrset| rrset.kind() == dns::Kind::DNSKEY).unwrap();
        assert_eq!(usize::from(keys.count()), shown.len());
        self.served.push((self.clock.now_ms(), signers, shown));
        let keys = self.keys();
        if self.judged.insert(keys.clone()) {
            self.judge().await;
            let anew = Feed::new(Some(self.seal.clone()), self.control.snapshot());
            assert_eq!(text(&anew.served[APEX].zone), text(self.zone()), "a headnode that begins now serves the same");
        }
        keys
    }

    async fn judge(&self) {
        let file = self.directory.path().join("zone");
        std::fs::write(&file, text(self.zone())).unwrap();
        let mut command = base::process::command("dnssec-verify");
        command.args(["-o", APEX]).arg(&file);
        let output = base::process::output(command, PATIENCE).await.expect("the tests need Debian's `bind9-utils`");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.success() && said.contains("Zone fully signed"), "{}: {said}", self.keys());
    }

    /// Another name, in a commit with the zone's next serial, as the publisher does it.
    async fn name(&self, number: u8) {
        let snapshot = self.control.snapshot();
        let id = InstanceId::from_random(u128::from(number));
        let group = Group {
            names: vec![format!("n{number}.inst.o")],
            shared: false,
            data: vec![Answer::A([10, 0, 0, number].into())],
        };
        let published = Published { instance: id, parts: [(APEX.to_owned(), vec![group])].into() };
        let entry = snapshot.get(&ZONES, APEX).unwrap();
        let (now, mut zone) = (self.control.clock.now_ms(), entry.value.clone());
        (zone.serial, zone.changed_at) = (zone.serial + 1, model::time::Timestamp(now));
        let transaction = Transaction::new().create(&NAMES, published).replace(&ZONES, &entry, zone);
        self.control.store.commit(transaction).await.unwrap();
    }
}

/// A zone as a file.
fn text(zone: &Zone) -> String {
    let hex = |data: &[u8]| {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\# {} {hex}", data.len())
    };
    let soa = zone.soa();
    let numbers = [zone.serial(), soa.refresh_s, soa.retry_s, soa.expire_s, soa.negative_s].map(|n| n.to_string());
    let mut lines = BTreeSet::new();
    lines.insert(format!(
        "{}. {} IN SOA {}. {}. {}",
        zone.apex(),
        soa.ttl_s,
        soa.primary,
        soa.mailbox,
        numbers.join(" ")
    ));
    lines.extend(zone.soa_signatures().map(|data| format!("{}. {} IN RRSIG {}", zone.apex(), soa.ttl_s, hex(data))));
    for (name, rrset) in zone.names().flat_map(|(name, rrsets)| rrsets.iter().map(move |rrset| (name, rrset))) {
        let (ttl, kind) = (rrset.ttl_s(), rrset.kind());
        lines.extend(rrset.data().map(|data| format!("{name}. {ttl} IN {kind} {}", hex(data))));
        lines.extend(rrset.signatures().map(|data| format!("{name}. {ttl} IN RRSIG {}", hex(data))));
    }
    // The zone's own record comes first.
    let (own, rest): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.contains(" IN SOA "));
    own.into_iter().chain(rest).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn a_signed_zone_stays_good_while_its_keys_are_changed() {
    let mut world = World::new(true).await;
    assert!(!world.zone().is_signed());
    assert_eq!(world.after(HOUR / 2).await, "Ksk Announced, Zsk Signing");
    for number in 1..5 {
        world.name(number).await;
        world.after(HOUR / 2).await;
    }
    assert_eq!(world.zone().name_count(), 5);
    assert_eq!(world.keys(), "Ksk Offered, Zsk Signing");
    let first = world.tag(KeyRole::Ksk, KeyStage::Offered);
    kept::parent(&world.control, APEX, ParentHas::Key(first)).await.unwrap();
    assert!(kept::parent(&world.control, "other.example", ParentHas::None).await.is_err());

    // A new ZSK, by itself: announced, signing, alone.
    kept::roll(&world.control, APEX, KeyRole::Zsk).await.unwrap();
    assert_eq!(world.after(HOUR / 2).await, "Ksk Signing, Zsk Signing, Zsk Announced");
    let mut past = Vec::new();
    for number in 10..30 {
        world.name(number).await;
        past.push(world.after(HOUR / 2).await);
    }
    past.dedup();
    assert_eq!(
        past,
        [
            "Ksk Signing, Zsk Signing, Zsk Announced",
            "Ksk Signing, Zsk Leaving, Zsk Signing",
            "Ksk Signing, Zsk Signing"
        ]
    );

    // A new KSK, which waits for the parent.
    kept::roll(&world.control, APEX, KeyRole::Ksk).await.unwrap();
    assert_eq!(world.after(HOUR / 2).await, "Ksk Signing, Zsk Signing, Ksk Announced");
    let next = world.tag(KeyRole::Ksk, KeyStage::Announced);
    let why = kept::parent(&world.control, APEX, ParentHas::Key(next)).await.unwrap_err().to_string();
    assert!(why.contains("too new"), "{why}");
    for _ in 0..24 {
        world.after(HOUR).await;
    }
    assert_eq!(world.keys(), "Ksk Signing, Zsk Signing, Ksk Offered", "it waits");
    kept::parent(&world.control, APEX, ParentHas::Key(next)).await.unwrap();
    assert_eq!(world.after(HOUR).await, "Ksk Leaving, Zsk Signing, Ksk Signing");
    for _ in 0..52 {
        world.after(HOUR).await;
    }
    assert_eq!(world.keys(), "Zsk Signing, Ksk Signing");
    assert_eq!(world.tag(KeyRole::Ksk, KeyStage::Signing), next);

    // Whatever somebody remembers of it can be checked with whatever else they remember.
    let remembered_ms = 3_600_000;
    for (at, signers, _) in &world.served {
        for (other, _, keys) in world.served.iter().filter(|(other, ..)| at.abs_diff(*other) <= remembered_ms) {
            assert!(signers.is_subset(keys), "signed at {at} by {signers:?}, keys of {other}: {keys:?}");
        }
    }
    assert!(world.clock.now_ms() < SystemClock.now_ms(), "the judge goes by the real clock");
}

#[tokio::test]
async fn signatures_are_renewed_although_nothing_changes() {
    let mut world = World::new(true).await;
    world.after(HOUR).await;
    let begins = |zone: &Zone| -> BTreeMap<String, u32> {
        let first = zone.names().filter_map(|(name, rrsets)| {
            let signature = rrsets.first()?.signatures().next()?;
            Some((name.to_string(), u32::from_be_bytes(signature[12..16].try_into().ok()?)))
        });
        first.collect()
    };
    // The keys' lives at first change the zone as well.
    world.after(5 * HOUR).await;
    let (serial, before) = (world.zone().serial(), begins(world.zone()));
    assert!(!before.is_empty());
    world.after(Duration::from_millis(RENEW_MS as u64) - HOUR).await;
    assert_eq!(world.zone().serial(), serial, "too early");
    for _ in 0..10 {
        world.after(12 * HOUR).await;
    }
    assert!(world.zone().serial() > serial);
    let after = begins(world.zone());
    assert!(before.iter().all(|(name, at)| after[name] > *at), "{before:?} {after:?}");
    world.judge().await;
}

/// Makes a key with a tag that another has, once.
struct Repeating {
    seal: Seal,
    tag: u16,
    made: std::sync::atomic::AtomicUsize,
}

impl KeyMaker for Repeating {
    fn make(&self, apex: &str, role: KeyRole) -> Result<MadeKey, String> {
        let made = self.seal.make(apex, role)?;
        match self.made.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(MadeKey { tag: self.tag, ..made }),
            _ => Ok(made),
        }
    }
}

#[tokio::test]
async fn a_key_with_the_tag_of_another_is_made_again() {
    let mut world = World::new(true).await;
    world.after(HOUR).await;
    let tag = world.tag(KeyRole::Zsk, KeyStage::Signing);
    kept::roll(&world.control, APEX, KeyRole::Zsk).await.unwrap();
    let maker = Repeating { seal: world.seal.clone(), tag, made: Default::default() };
    kept::tend(&world.control, &maker).await.unwrap();
    assert_eq!(maker.made.into_inner(), 2);
    assert_ne!(world.tag(KeyRole::Zsk, KeyStage::Announced), tag);
}

#[tokio::test]
async fn a_zone_that_is_not_to_be_signed_stays_so_until_its_parent_forgets() {
    let mut world = World::new(true).await;
    world.after(HOUR).await;
    world.after(3 * HOUR).await;
    let tag = world.tag(KeyRole::Ksk, KeyStage::Offered);
    kept::parent(&world.control, APEX, ParentHas::Key(tag)).await.unwrap();
    let (without, _trigger) = World::control(world.control.store.clone(), &world.clock, world.directory.path(), false);
    publish_all(&without).await.unwrap();
    world.after(100 * HOUR / 2).await;
    assert!(world.zone().is_signed());
    kept::parent(&world.control, APEX, ParentHas::None).await.unwrap();
    world.after(HOUR).await;
    world.clock.advance(48 * HOUR);
    kept::tend(&world.control, &world.seal).await.unwrap();
    world.feed.follow(&world.control.snapshot(), None);
    assert!(!world.zone().is_signed());
    assert_eq!(world.keys(), "");
    let text = text(world.zone());
    assert!(!text.contains("RRSIG") && !text.contains("DNSKEY") && !text.contains("NSEC"), "{text}");
}
