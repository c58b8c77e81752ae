//! Certificates: one authority per datacenter, and what it signs.
//!
//! ```text
//! data/pki/ca.{pem,key} ──signs──► server.{pem,key}    CloudAPI, node link, ops API, container monitor (names and addresses)
//!                       ├────────► node.{pem,key}      CN = server id, OU = node
//!                       └────────► operator.{pem,key}  CN = login,     OU = operator   (in paths.operator)
//! ```
//! The store has an authority of its own where it is kept in members: see [`StorePki`].
//!
//! A machine that joined has `node.{pem,key}`, `server-id` and the authority's certificate, not its key: see [`member()`].
//!
//! [`ensure`] makes what is missing and renews what has used two thirds of its life or no longer carries the wanted
//! names, or whose key does not fit (a process died between writing the two); it changes nothing otherwise, so it may run at
//! every start and on a timer. [`renew`] makes all anew before their time. One process does either at a time. Keys are written
//! 0600, and every file appears whole or not at all. The authority itself is never renewed silently: nodes and operators
//! pin it.

mod member;
mod store;

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use model::{id::ServerId, time::Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::settings::Settings;

pub use member::{
    Member, Renewal, certify, enroll, is_joining, key_of, member, pending_request, renew_member, request,
};
pub use store::{StorePki, adopt_store_authority, make_store_authority, store_certificates};

/// Life of the authority, days.
const CA_DAYS: u32 = 3_650;
/// Life of everything it signs, days: the most browsers accept.
const LEAF_DAYS: u32 = 397;
/// Certificates start to be valid this many seconds in the past, for machines whose clocks are late.
const BACKDATE_SECONDS: i64 = 86_400;

/// What a client certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Dial the node link.
    Node,
    /// Use the ops API.
    Operator,
    /// Read metrics through the ops API, and nothing else.
    Watcher,
}

impl Role {
    /// The certificate's organizational unit.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Operator => "operator",
            Self::Watcher => "watcher",
        }
    }
}

/// Why certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("failed to make the certificate of {what}")]
    Make {
        /// Whose.
        what: String,
        /// The library's words.
        #[source]
        source: rcgen::Error,
    },
    /// A file is not what it should be.
    #[error(
        "`{path}` is damaged: {why}; restore it from a backup, or remove `{path}` and run `neso up` to make a new one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A certificate and its key, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM certificate.
    pub certificate: PathBuf,
    /// PEM private key (PKCS#8).
    pub key: PathBuf,
}

impl Identity {
    pub(crate) fn named(directory: &Path, name: &str) -> Self {
        Self { certificate: directory.join(format!("{name}.pem")), key: directory.join(format!("{name}.key")) }
    }

    /// The certificate chain and key, ready for TLS.
    pub fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let certificate = load_certificate(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| PkiError::Damaged { path: self.key.clone(), why: error.to_string() })?;
        Ok((vec![certificate], key))
    }

    /// The certificate's serial number, hexadecimal: tells a renewed one from its predecessor.
    pub fn serial(&self) -> Result<String, PkiError> {
        let der = load_certificate(&self.certificate)?;
        Ok(serial_of(&parse(&self.certificate, &der)?))
    }

    /// When the certificate ends.
    pub fn expires_at(&self) -> Result<Timestamp, PkiError> {
        let der = load_certificate(&self.certificate)?;
        let (_, seconds) = validity(&self.certificate, &der)?;
        Ok(Timestamp(seconds.saturating_mul(1_000)))
    }
}

/// All certificates of a datacenter on one machine.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The authority.
    pub ca: Identity,
    /// The headnode's listeners.
    pub server: Identity,
    /// This machine's node.
    pub node: Identity,
    /// The operator; beside it lies a copy of the authority's certificate, `ca.pem`.
    pub operator: Identity,
    /// Who this machine's node is.
    pub server_id: ServerId,
}

impl Pki {
    /// The authority's certificate.
    pub fn authority(&self) -> Result<CertificateDer<'static>, PkiError> {
        load_certificate(&self.ca.certificate)
    }
}

/// What [`ensure`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made(pub Vec<String>);

/// Makes what is missing and renews what is about to end. `now` is the wall clock.
pub fn ensure(settings: &Settings, now: Timestamp) -> Result<(Pki, Made), PkiError> {
    prepare(settings, now, Due::InTime)
}

/// Makes what is missing, and everything but the authority anew.
pub fn renew(settings: &Settings, now: Timestamp) -> Result<(Pki, Made), PkiError> {
    prepare(settings, now, Due::Now)
}

/// Makes, or renews in time, the certificate of a program that reads metrics, in `directory`: `watcher.pem` and `watcher.key`. The authority must be there.
pub fn watcher(settings: &Settings, directory: &Path, now: Timestamp) -> Result<Identity, PkiError> {
    let _alone = lock(&settings.pki_dir())?;
    let ca = Identity::named(&settings.pki_dir(), "ca");
    let (identity, leaf) =
        (Identity::named(directory, "watcher"), Leaf::client(Role::Watcher, "prometheus".to_owned()));
    if !leaf.is_fresh(&identity, &load_certificate(&ca.certificate)?, now)? {
        leaf.make(&identity, &load_issuer(&ca)?, now)?;
    }
    Ok(identity)
}

/// Which certificates are made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Those that are not fresh any more.
    InTime,
    /// All.
    Now,
}

fn prepare(settings: &Settings, now: Timestamp, due: Due) -> Result<(Pki, Made), PkiError> {
    let directory = settings.pki_dir();
    let operator_directory = &settings.paths.operator;
    for path in [&directory, operator_directory] {
        make_directory(path)?;
    }
    let _alone = lock(&directory)?;
    let mut made = Made::default();
    let ca = Identity::named(&directory, "ca");
    if !ca.certificate.exists() || !ca.key.exists() {
        make_authority(&format!("Neso {} authority", settings.datacenter.name), &ca, now)?;
        made.0.push("authority".into());
    }
    let issuer = load_issuer(&ca)?;
    let server_id = ensure_server_id(&directory.join("server-id"))?;
    let pki = Pki {
        server: Identity::named(&directory, "server"),
        node: Identity::named(&directory, "node"),
        operator: Identity::named(operator_directory, "operator"),
        ca,
        server_id,
    };
    let authority = pki.authority()?;
    let leaves = [
        (&pki.server, Leaf::server(settings)),
        (&pki.node, Leaf::client(Role::Node, server_id.to_string())),
        (&pki.operator, Leaf::client(Role::Operator, settings.first_run.operator.clone())),
    ];
    for (identity, leaf) in leaves {
        if due == Due::Now || !leaf.is_fresh(identity, &authority, now)? {
            leaf.make(identity, &issuer, now)?;
            made.0.push(leaf.common_name.clone());
        }
    }
    let copy = operator_directory.join("ca.pem");
    let text = read(&pki.ca.certificate)?;
    if fs::read(&copy).ok().as_ref() != Some(&text) {
        write_file(&copy, &text, 0o644)?;
    }
    Ok((pki, made))
}

/// What a certificate should say.
struct Leaf {
    common_name: String,
    unit: Option<Role>,
    uses: Uses,
    names: BTreeSet<String>,
}

/// Which side of a connection a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uses {
    /// Who listens.
    Server,
    /// Who dials.
    Client,
    /// One who does both.
    Both,
}

impl Leaf {
    fn server(settings: &Settings) -> Self {
        let mut names: BTreeSet<String> =
            ["localhost", "127.0.0.1", "::1", nodeapi::HEADNODE_NAME].map(str::to_owned).into();
        names.extend(settings.listen.names.iter().cloned());
        let listen = &settings.listen;
        for monitor in settings.monitor_names() {
            names.extend([format!("*.{monitor}"), monitor]);
        }
        for address in [listen.cloudapi, listen.node_link, listen.ops, settings.monitor_address()] {
            if !address.ip().is_unspecified() {
                names.insert(address.ip().to_string());
            }
        }
        if let Some(gateway) = settings.external.subnet.hosts().next() {
            names.insert(gateway.to_string());
        }
        if let Some(gateway) = settings.external.subnet6.and_then(|subnet| subnet.hosts().nth(1)) {
            names.insert(gateway.to_string());
        }
        if let Ok(hostname) = fs::read_to_string("/proc/sys/kernel/hostname") {
            let hostname = hostname.trim().to_ascii_lowercase();
            if !hostname.is_empty() && hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
                names.insert(hostname);
            }
        }
        Self { common_name: format!("{} headnode", settings.datacenter.name), unit: None, uses: Uses::Server, names }
    }

    fn client(role: Role, common_name: String) -> Self {
        Self { common_name, unit: Some(role), uses: Uses::Client, names: BTreeSet::new() }
    }

    /// There, signed by this authority, with enough life left and the wanted names.
    fn is_fresh(&self, identity: &Identity, authority: &CertificateDer<'_>, now: Timestamp) -> Result<bool, PkiError> {
        if !identity.certificate.exists() || !identity.key.exists() {
            return Ok(false);
        }
        let der = load_certificate(&identity.certificate)?;
        let certificate = parse(&identity.certificate, &der)?;
        let issuer = parse(&identity.certificate, authority)?;
        let (from, to) = validity(&identity.certificate, &der)?;
        let key = String::from_utf8_lossy(&read(&identity.key)?).into_owned();
        let fits =
            KeyPair::from_pem(&key).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw);
        let seconds = now.0 / 1_000;
        let young = seconds < from + (to - from) / 3 * 2;
        let ours = certificate.verify_signature(Some(issuer.public_key())).is_ok();
        Ok(young
            && ours
            && fits
            && names_of(&certificate) == self.names
            && common_name(&certificate) == Some(self.common_name.as_str()))
    }

    fn make(&self, identity: &Identity, issuer: &Issuer<'_, KeyPair>, now: Timestamp) -> Result<(), PkiError> {
        let fail = |source| PkiError::Make { what: self.common_name.clone(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.common_name.clone());
        if let Some(role) = self.unit {
            params.distinguished_name.push(DnType::OrganizationalUnitName, role.unit());
        }
        for name in &self.names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into().map_err(fail)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match self.uses {
            Uses::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Uses::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Uses::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, LEAF_DAYS);
        let key = KeyPair::generate().map_err(fail)?;
        let certificate = params.signed_by(&key, issuer).map_err(fail)?;
        write_file(&identity.key, key.serialize_pem().as_bytes(), 0o600)?;
        write_file(&identity.certificate, certificate.pem().as_bytes(), 0o644)
    }
}

fn make_authority(name: &str, ca: &Identity, now: Timestamp) -> Result<(), PkiError> {
    let fail = |source| PkiError::Make { what: name.to_owned(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_DAYS);
    let key = KeyPair::generate().map_err(fail)?;
    let certificate = params.self_signed(&key).map_err(fail)?;
    write_file(&ca.key, key.serialize_pem().as_bytes(), 0o600)?;
    write_file(&ca.certificate, certificate.pem().as_bytes(), 0o644)
}

fn load_issuer(ca: &Identity) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let damaged =
        |path: &Path, error: rcgen::Error| PkiError::Damaged { path: path.to_owned(), why: error.to_string() };
    let key_text = String::from_utf8_lossy(&read(&ca.key)?).into_owned();
    let key = KeyPair::from_pem(&key_text).map_err(|error| damaged(&ca.key, error))?;
    let certificate = load_certificate(&ca.certificate)?;
    Issuer::from_ca_cert_der(&certificate, key).map_err(|error| damaged(&ca.certificate, error))
}

/// Whether a key is that of a certificate, both PEM.
pub(crate) fn fits(certificate_pem: &str, key_pem: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    KeyPair::from_pem(key_pem).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, days: u32) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let start = u64::try_from(now.0 / 1_000 - BACKDATE_SECONDS).unwrap_or(0);
    params.not_before = epoch + Duration::from_secs(start);
    params.not_after = epoch + Duration::from_secs(start + u64::from(days) * 86_400);
}

fn ensure_server_id(path: &Path) -> Result<ServerId, PkiError> {
    if let Ok(text) = fs::read_to_string(path) {
        return text
            .trim()
            .parse()
            .map_err(|error: uuid::Error| PkiError::Damaged { path: path.to_owned(), why: error.to_string() });
    }
    let id = ServerId::random();
    write_file(path, format!("{id}\n").as_bytes(), 0o644)?;
    Ok(id)
}

fn load_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(&read(path)?)
        .map_err(|error| PkiError::Damaged { path: path.to_owned(), why: error.to_string() })
}

fn parse<'a>(path: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| PkiError::Damaged { path: path.to_owned(), why: error.to_string() })
}

/// First and last second.
fn validity(path: &Path, der: &CertificateDer<'_>) -> Result<(i64, i64), PkiError> {
    let certificate = parse(path, der)?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next()?.as_str().ok()
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// Who a client is, by its verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Common name: a server's id or an operator's login.
    pub name: String,
    /// Organizational unit.
    pub unit: String,
    /// Serial number of the certificate, hexadecimal.
    pub serial: String,
    /// When the certificate ends, or ended.
    pub ends_at: Timestamp,
}

impl Peer {
    /// Reads a certificate that TLS has verified already.
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let name = common_name(&certificate)?.to_owned();
        let unit = certificate.subject().iter_organizational_unit().next()?.as_str().ok()?.to_owned();
        let ends_at = Timestamp(certificate.validity().not_after.timestamp().saturating_mul(1_000));
        Some(Self { name, unit, serial: serial_of(&certificate), ends_at })
    }
}

fn serial_of(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until no other process makes certificates in `directory`; none does until the answer is dropped.
fn lock(directory: &Path) -> Result<fs::File, PkiError> {
    let path = directory.join("lock");
    let locked = fs::File::create(&path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|source| PkiError::Io { doing: "lock", path, source })
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    fs::read(path).map_err(|source| PkiError::Io { doing: "read", path: path.to_owned(), source })
}

/// Makes a directory that only its owner may look into, with those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| PkiError::Io {
        doing: "create directory",
        path: path.to_owned(),
        source,
    })
}

/// Writes beside, syncs, renames: a reader sees the old file or the new one.
pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let beside = path.with_extension("new");
    let fail = |source| PkiError::Io { doing: "write", path: path.to_owned(), source };
    let write = || {
        let _ = fs::remove_file(&beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn settings(root: &Path) -> Settings {
        Settings::parse(&Settings::generate(Some(root)).unwrap()).unwrap()
    }

    #[test]
    fn made_once_renewed_in_time_and_private() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        let now = Timestamp(1_800_000_000_000);
        let (pki, made) = ensure(&settings, now).unwrap();
        assert_eq!(made.0.len(), 4);
        assert_eq!(fs::metadata(&pki.node.key).unwrap().permissions().mode() & 0o777, 0o600);
        let serial = pki.node.serial().unwrap();
        assert_eq!(
            Peer::of(&pki.node.load().unwrap().0[0]).unwrap(),
            Peer {
                name: pki.server_id.to_string(),
                unit: "node".into(),
                serial: serial.clone(),
                ends_at: pki.node.expires_at().unwrap(),
            }
        );

        assert_eq!(ensure(&settings, now).unwrap().1, Made::default());
        let later = now.plus_millis(300 * 86_400_000);
        let renewed = ensure(&settings, later).unwrap().1;
        assert_eq!(renewed.0.len(), 3, "all but the authority: {renewed:?}");
        assert!(pki.server.expires_at().unwrap() > later.plus_millis(390 * 86_400_000));
        assert_ne!(pki.node.serial().unwrap(), serial);
    }

    #[test]
    fn death_between_key_and_certificate_is_mended() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        let now = Timestamp(1_800_000_000_000);
        let (pki, _) = ensure(&settings, now).unwrap();
        let other = KeyPair::generate().unwrap();
        write_file(&pki.node.key, other.serialize_pem().as_bytes(), 0o600).unwrap();
        write_file(&pki.server.key, b"torn", 0o600).unwrap();
        assert_eq!(ensure(&settings, now).unwrap().1.0.len(), 2);
        assert_eq!(ensure(&settings, now).unwrap().1, Made::default());
    }

    #[test]
    fn all_can_be_renewed_before_their_time() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        let now = Timestamp(1_800_000_000_000);
        let (pki, _) = ensure(&settings, now).unwrap();
        let authority = pki.ca.serial().unwrap();
        assert_eq!(renew(&settings, now).unwrap().1.0.len(), 3);
        assert_eq!(pki.ca.serial().unwrap(), authority);
    }

    #[test]
    fn a_new_name_makes_a_new_server_certificate() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = settings(root.path());
        let now = Timestamp(1_800_000_000_000);
        ensure(&settings, now).unwrap();
        settings.listen.names.push("cloud.example.org".into());
        assert_eq!(ensure(&settings, now).unwrap().1.0.len(), 1);
        assert_eq!(ensure(&settings, now).unwrap().1, Made::default());
    }
}
