//! Image manifests of version 2, as IMGAPI and `imgadm` write them.
//!
//! A manifest comes from strangers. It is read into [`Manifest`] by [`parse`], which checks every field that becomes a
//! name, a path or a size here, and names the one it refuses. Unknown fields are left alone: newer writers add some.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Compression, Image, ImageKind, ImageState, Requirements};
use crate::{
    id::{AccountId, ImageId},
    rules,
    time::Timestamp,
    unit::Mib,
};

/// Bytes of a manifest at most; real ones have about one thousand.
pub const MANIFEST_MAX_BYTES: usize = 64 << 10;
/// Bytes of an image's file at most: larger than any image seen, small enough that a typing error is noticed.
pub const FILE_MAX_BYTES: u64 = 64 << 30;
/// Accounts in a private image's list.
pub const ACL_MAX: usize = 256;
/// Bytes of description, homepage and licence link.
pub const TEXT_MAX_BYTES: usize = 1_024;

/// A manifest whose fields have been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// See [`Image::id`].
    pub id: ImageId,
    /// See [`Image::name`].
    pub name: String,
    /// See [`Image::version`].
    pub version: String,
    /// See [`Image::description`].
    pub description: Option<String>,
    /// See [`Image::homepage`].
    pub homepage: Option<String>,
    /// See [`Image::eula`].
    pub eula: Option<String>,
    /// See [`Image::os`].
    pub os: String,
    /// See [`Image::kind`].
    pub kind: ImageKind,
    /// See [`Image::public`].
    pub public: bool,
    /// See [`Image::acl`].
    pub acl: Vec<AccountId>,
    /// See [`Image::tags`].
    pub tags: BTreeMap<String, serde_json::Value>,
    /// See [`Image::requirements`].
    pub requirements: Requirements,
    /// When its maker published it.
    pub published_at: Option<Timestamp>,
    /// What the file must be.
    pub file: ExpectedFile,
}

/// What a manifest says of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedFile {
    /// SHA-1, lower-case hex, as IMGAPI's manifests have it.
    pub sha1: Option<String>,
    /// SHA-256, lower-case hex, as ours have it too. At least one of the two is there.
    pub sha256: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// How it is packed.
    pub compression: Compression,
}

impl Manifest {
    /// The record of an image whose file is not here yet.
    pub fn into_image(self, owner: AccountId, now: Timestamp) -> Image {
        Image {
            id: self.id,
            owner,
            name: self.name,
            version: self.version,
            description: self.description,
            homepage: self.homepage,
            eula: self.eula,
            os: self.os,
            kind: self.kind,
            public: self.public,
            acl: self.acl,
            tags: self.tags,
            requirements: self.requirements,
            state: ImageState::Unactivated,
            error: None,
            expected_file: Some(self.file),
            file: None,
            published_at: self.published_at,
            created_at: now,
        }
    }
}

/// Why a text is no manifest we can use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It is too long to be one.
    #[error("the manifest has more than {MANIFEST_MAX_BYTES} bytes")]
    TooLong,
    /// It is not JSON, or a field has the wrong type.
    #[error("the manifest cannot be read")]
    Json(#[source] serde_json::Error),
    /// A field has a value that is not allowed.
    #[error("the manifest's \"{field}\" {why}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// Reads and checks a manifest.
pub fn parse(json: &[u8]) -> Result<Manifest, InvalidManifest> {
    if json.len() > MANIFEST_MAX_BYTES {
        return Err(InvalidManifest::TooLong);
    }
    let wire: Wire = serde_json::from_slice(json).map_err(InvalidManifest::Json)?;
    let invalid = |field, why: String| InvalidManifest::Field { field, why };
    if wire.v != 2 {
        return Err(invalid("v", format!("is {}; only version 2 is understood", wire.v)));
    }
    rules::check_name(&wire.name).map_err(|why| invalid("name", why))?;
    rules::check_name(&wire.version).map_err(|why| invalid("version", why))?;
    for (field, text) in [("description", &wire.description), ("homepage", &wire.homepage), ("eula", &wire.eula)] {
        if text.as_ref().is_some_and(|text| text.len() > TEXT_MAX_BYTES) {
            return Err(invalid(field, format!("has more than {TEXT_MAX_BYTES} bytes")));
        }
    }
    if wire.os != "linux" {
        return Err(invalid("os", format!("is \"{}\"; machines here run \"linux\"", short(&wire.os))));
    }
    if wire.kind != "lx-dataset" {
        return Err(invalid("type", format!("is \"{}\"; only \"lx-dataset\" is understood", short(&wire.kind))));
    }
    if wire.acl.len() > ACL_MAX {
        return Err(invalid("acl", format!("has more than {ACL_MAX} entries")));
    }
    rules::check_tag_names(wire.tags.keys()).map_err(|why| invalid("tags", why))?;
    let requirements = requirements(&wire.requirements).map_err(|why| invalid("requirements", why))?;
    let file = expected_file(wire.files).map_err(|why| invalid("files", why))?;
    Ok(Manifest {
        id: wire.uuid,
        name: wire.name,
        version: wire.version,
        description: wire.description,
        homepage: wire.homepage,
        eula: wire.eula,
        os: wire.os,
        kind: ImageKind::LxDataset,
        public: wire.public,
        acl: wire.acl,
        tags: wire.tags,
        requirements,
        published_at: wire.published_at,
        file,
    })
}

/// The fields as they stand in the file.
#[derive(Deserialize)]
struct Wire {
    v: u32,
    uuid: ImageId,
    name: String,
    version: String,
    description: Option<String>,
    homepage: Option<String>,
    eula: Option<String>,
    os: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    public: bool,
    #[serde(default)]
    acl: Vec<AccountId>,
    #[serde(default)]
    tags: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    requirements: WireRequirements,
    published_at: Option<Timestamp>,
    #[serde(default)]
    files: Vec<WireFile>,
}

#[derive(Default, Deserialize)]
struct WireRequirements {
    #[serde(alias = "min_ram")]
    min_memory: Option<u64>,
    #[serde(alias = "max_ram")]
    max_memory: Option<u64>,
}

#[derive(Deserialize)]
struct WireFile {
    sha1: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
    compression: String,
}

fn requirements(wire: &WireRequirements) -> Result<Requirements, String> {
    if let (Some(min), Some(max)) = (wire.min_memory, wire.max_memory)
        && min > max
    {
        return Err(format!("ask for at least {min} and at most {max} MiB of memory"));
    }
    Ok(Requirements { min_memory: wire.min_memory.map(Mib), max_memory: wire.max_memory.map(Mib) })
}

fn expected_file(mut files: Vec<WireFile>) -> Result<ExpectedFile, String> {
    let (Some(file), true) = (files.pop(), files.is_empty()) else {
        return Err("must have exactly one entry".to_owned());
    };
    let hex = |text: &Option<String>, digits: usize, name: &str| match text {
        Some(text) if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Err(format!("have a {name} that is not {digits} hex digits"))
        }
        Some(text) => Ok(Some(text.to_ascii_lowercase())),
        None => Ok(None),
    };
    let (sha1, sha256) = (hex(&file.sha1, 40, "sha1")?, hex(&file.sha256, 64, "sha256")?);
    if sha1.is_none() && sha256.is_none() {
        return Err("have neither sha1 nor sha256, so nothing could be verified".to_owned());
    }
    if file.size.is_some_and(|size| size == 0 || size > FILE_MAX_BYTES) {
        return Err(format!("have a size that is not between 1 and {FILE_MAX_BYTES} bytes"));
    }
    let compression = match file.compression.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        other => return Err(format!("are packed with \"{}\"; use \"gzip\" or \"none\"", short(other))),
    };
    Ok(ExpectedFile { sha1, sha256, size: file.size, compression })
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{
        "v": 2, "uuid": "0a5fa52b-2ec1-4a02-9a36-6c5e3f2a7f11", "owner": "00000000-0000-0000-0000-000000000000",
        "name": "minimal", "version": "20261124", "os": "linux", "type": "lx-dataset", "public": true,
        "requirements": {"min_ram": 64, "kernel": "6.1"}, "published_at": "2026-11-24T15:00:00.000Z",
        "files": [{"sha1": "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709", "size": 123, "compression": "gzip"}]
    }"#;

    fn verdict(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from} is in the example");
        match parse(GOOD.replacen(from, to, 1).as_bytes()) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_manifest_is_read() {
        let manifest = parse(GOOD.as_bytes()).expect("it is good");
        assert_eq!(manifest.name, "minimal");
        assert_eq!(manifest.requirements.min_memory, Some(Mib(64)));
        assert_eq!(manifest.file.sha1.as_deref(), Some("da39a3ee5e6b4b0d3255bfef95601890afd80709"));
        assert_eq!(manifest.file.compression, Compression::Gzip);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(verdict("\"v\": 2", "\"v\": 1"), "the manifest's \"v\" is 1; only version 2 is understood");
        assert_eq!(
            verdict("\"minimal\"", "\"a/b\""),
            "the manifest's \"name\" may not have control characters or \"/\""
        );
        assert_eq!(
            verdict("\"linux\"", "\"smartos\""),
            "the manifest's \"os\" is \"smartos\"; machines here run \"linux\""
        );
        assert_eq!(
            verdict("\"gzip\"", "\"xz\""),
            "the manifest's \"files\" are packed with \"xz\"; use \"gzip\" or \"none\""
        );
        assert_eq!(
            verdict("\"sha1\"", "\"md5\""),
            "the manifest's \"files\" have neither sha1 nor sha256, so nothing could be verified"
        );
        assert_eq!(verdict("DA39", "../x"), "the manifest's \"files\" have a sha1 that is not 40 hex digits");
        assert_eq!(verdict("\"size\": 123", "\"size\": -1"), "the manifest cannot be read");
    }

    proptest! {
        #[test]
        fn strangers_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_manifest_is_refused_or_still_safe(at in 0..GOOD.len(), byte in any::<u8>()) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(manifest) = parse(&bytes) {
                prop_assert!(!manifest.name.contains('/') && !manifest.version.contains('/'));
                prop_assert!(manifest.file.sha1.iter().all(|sha1| sha1.len() == 40 && sha1.bytes().all(|byte| byte.is_ascii_hexdigit())));
            }
        }
    }
}
