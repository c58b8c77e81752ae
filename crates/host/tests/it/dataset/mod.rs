//! Datasets: one suite for the fake and the real pool, then what only a kernel can show.

mod hostile;
mod kernel;
mod pack;
mod site;

use std::io::{self, Read};

use host::{
    Error,
    dataset::Datasets,
    fake::{Faults, dataset::DatasetMachine, dataset::FakeDatasets},
};
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};
use pack::Pack;
use site::Site;

#[test]
fn fake_datasets_pass_the_suite() {
    suite(&FakeDatasets::new(DatasetMachine::default(), Faults::default()));
}

#[test]
fn linux_datasets_pass_the_suite() {
    suite(&Site::new().open());
}

fn suite(datasets: &dyn Datasets) {
    let (image, instance) = (ImageId::random(), InstanceId::random());
    let packed = Pack::small();
    let import = |image, sha: &str, mut bytes: &[u8]| datasets.import(image, sha, Compression::Gzip, &mut bytes);

    assert_eq!(datasets.images().expect("a list"), []);
    assert!(matches!(datasets.clone_image(image, instance, Mib(64)), Err(Error::Missing(_))));

    let wrong = "0".repeat(64);
    let refused = import(image, &wrong, &packed.gzip()).expect_err("a wrong checksum");
    assert!(matches!(&refused, Error::Refused { why, .. } if why.contains("SHA-256")), "{refused}");
    let cut = packed.gzip();
    assert!(import(image, &packed.gzip_sha(), &cut[..cut.len() / 2]).is_err(), "half an archive");
    assert_eq!(datasets.images().expect("a list"), [], "what was refused leaves nothing");

    let broken = datasets.import(image, &packed.gzip_sha(), Compression::Gzip, &mut Broken(packed.gzip()));
    assert!(matches!(broken, Err(Error::Os { .. })), "a transfer that breaks is no bad archive: {broken:?}");

    import(image, &packed.gzip_sha(), &packed.gzip()).expect("an import");
    assert_eq!(datasets.images().expect("a list"), [image]);
    import(image, &wrong, &[]).expect("one that is there is left alone, whatever comes");

    let path = datasets.clone_image(image, instance, Mib(64)).expect("a clone");
    assert_eq!(datasets.clone_image(image, instance, Mib(64)).expect("again"), path);
    assert_eq!(datasets.roots().expect("a list"), [instance]);
    assert!(datasets.used_bytes(instance).expect("its use") < 1 << 20, "a fresh clone uses next to nothing");
    datasets.set_quota(instance, Mib(128)).expect("a new quota");
    assert!(matches!(datasets.set_quota(InstanceId::random(), Mib(1)), Err(Error::Missing(_))));

    datasets.remove_image(image).expect("a removal");
    datasets.remove_image(image).expect("again");
    assert_eq!(datasets.images().expect("a list"), []);
    assert_eq!(datasets.roots().expect("a list"), [instance], "clones live on");
    datasets.remove_root(instance).expect("a removal");
    datasets.remove_root(instance).expect("again");
    assert_eq!(datasets.roots().expect("a list"), []);
    assert!(matches!(datasets.used_bytes(instance), Err(Error::Missing(_))));
    let pool = datasets.pool().expect("its size");
    assert!(pool.size_bytes > 0 && pool.used_bytes < pool.size_bytes);
}

/// A transfer that breaks after some bytes.
struct Broken(Vec<u8>);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.len() < 64 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let count = buffer.len().min(32).min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}
