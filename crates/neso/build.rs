//! Builds the metadata client as a static program, so that `neso image build` has it at hand wherever `neso` lies.
//!
//! The client runs inside guests whose C library may be another or none. Cargo cannot (yet) build one dependency with
//! other flags than the rest, so this script asks cargo for it with a target directory of its own below `OUT_DIR`: no
//! lock of the outer build is touched, and the two small libraries it needs have been fetched for other crates anyway.

#![allow(clippy::disallowed_types, reason = "a build script is not part of the product")]

use std::{env, path::PathBuf, process::Command};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    for watched in ["crates/mdata/src", "crates/mdata/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let target = out.join("mdata");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--package", "mdata", "--bin", "mdata", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    // What the outer build was told must not leak in: clippy's wrapper, other flags, another target.
    for leak in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(leak);
    }
    let status = cargo.status().expect("the cargo that runs this script can be run again");
    assert!(status.success(), "the metadata client does not build: {status}");
    println!("cargo::rustc-env=NESO_MDATA={}", target.join("release/mdata").display());
}
