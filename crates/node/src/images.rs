//! Images: however many instances want one, its file is fetched and imported once.
//!
//! The first who asks starts a task; everyone waits for its word. The file goes to disk on its way: a slow link then
//! holds no thread and no half-made dataset, and memory stays small. The host checks the checksum while it imports.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base::watch;
use model::{id::ImageId, target::ImageTarget};
use nodeapi::link::LinkError;

use crate::{error::StepError, files, shared::Shared};

/// Between two lines in the log about a running fetch, milliseconds.
const PROGRESS_MS: i64 = 2000;

/// What the one attempt said: nothing yet, done, or why not.
type Word = Option<Result<(), Why>>;

/// Why an attempt failed, in a form that all who waited can have.
#[derive(Debug, Clone)]
enum Why {
    /// Trying again may help: no headnode.
    Outside(String),
    /// Anything else.
    Here(String),
}

/// The fetches under way.
pub(crate) struct Images {
    incoming: PathBuf,
    flights: Mutex<HashMap<ImageId, watch::Receiver<Word>>>,
}

impl Images {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { incoming: data_dir.join("incoming"), flights: Mutex::default() }
    }

    /// Makes the directory for files on their way, and removes what an agent that died left there.
    pub(crate) fn clear(&self) -> io::Result<()> {
        fs::create_dir_all(&self.incoming)?;
        for entry in fs::read_dir(&self.incoming)? {
            files::remove(&entry?.path())?;
        }
        Ok(())
    }
}

/// Waits until `image` is in the pool, fetching it when nobody does yet.
pub(crate) async fn ensure(shared: &Arc<Shared>, image: ImageId, wanted: &ImageTarget) -> Result<(), StepError> {
    if shared.board.has_image(image) {
        return Ok(());
    }
    let mut flight = join_or_begin(shared, image, wanted);
    let word = match flight.wait_for(Option::is_some).await {
        Ok(word) => word.clone(),
        // The task is gone without a word; whoever tries again begins a new one.
        Err(_) => None,
    };
    match word {
        Some(Ok(())) => Ok(()),
        Some(Err(Why::Outside(why))) => {
            let doing = format!("fetch its file ({why})");
            let source = LinkError::Unreachable { doing, source: "no headnode delivered it".into() };
            Err(StepError::Fetch { image, source })
        }
        Some(Err(Why::Here(why))) => Err(StepError::Import { image, why }),
        None => Err(StepError::Import { image, why: "the attempt ended without a result".to_owned() }),
    }
}

fn join_or_begin(shared: &Arc<Shared>, image: ImageId, wanted: &ImageTarget) -> watch::Receiver<Word> {
    let mut flights = shared.images.flights.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(flight) = flights.get(&image)
        && flight.has_changed().is_ok()
    {
        return flight.clone();
    }
    let (say, hear) = watch::channel(None);
    flights.insert(image, hear.clone());
    let (shared, wanted) = (shared.clone(), wanted.clone());
    base::task::spawn("image fetch", async move {
        let result = tokio::select! {
            biased;
            result = fetch(&shared, image, &wanted) => result,
            () = shared.shutdown.wait() => Err(Why::Outside("the agent is ending".to_owned())),
        };
        if result.is_ok() {
            shared.board.images(|images| {
                images.insert(image);
            });
        }
        // First out of the table, then the word: who hears it and asks again begins anew.
        shared.images.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        say.send_replace(Some(result));
    });
    hear
}

async fn fetch(shared: &Shared, image: ImageId, wanted: &ImageTarget) -> Result<(), Why> {
    let path = shared.images.incoming.join(format!("{}.part", wanted.sha256));
    let result = match download(shared, image, wanted, &path).await {
        Ok(()) => import(shared, image, wanted, path.clone()).await,
        Err(why) => Err(why),
    };
    if let Err(error) = files::remove(&path) {
        tracing::warn!(path = %path.display(), %error, "failed to remove a fetched image file");
    }
    result
}

async fn download(shared: &Shared, image: ImageId, wanted: &ImageTarget, path: &Path) -> Result<(), Why> {
    let begun = shared.now_ms();
    let here = |error: io::Error| Why::Here(format!("failed to write `{}`: {error}", path.display()));
    let outside = |error: LinkError| match &error {
        LinkError::Unreachable { .. } | LinkError::Slow { .. } => Why::Outside(base::errors::chain(&error)),
        _ => Why::Here(base::errors::chain(&error)),
    };
    let mut file = File::create(path).map_err(here)?;
    let mut chunks = shared.link.image(&wanted.sha256).await.map_err(outside)?;
    let (mut received, mut told) = (0_u64, begun);
    while let Some(chunk) = chunks.next().await.map_err(outside)? {
        received += chunk.len() as u64;
        if received > wanted.size {
            return Err(Why::Here(format!("its file is longer than the {} bytes its manifest says", wanted.size)));
        }
        file.write_all(&chunk).map_err(here)?;
        if shared.now_ms() - told >= PROGRESS_MS {
            told = shared.now_ms();
            tracing::info!(%image, received, size = wanted.size, "fetching image");
        }
    }
    if received < wanted.size {
        return Err(Why::Here(format!("its file has {received} bytes, its manifest says {}", wanted.size)));
    }
    tracing::info!(%image, received, ms = shared.now_ms() - begun, "fetched image");
    Ok(())
}

async fn import(shared: &Shared, image: ImageId, wanted: &ImageTarget, path: PathBuf) -> Result<(), Why> {
    let begun = shared.now_ms();
    let wanted = wanted.clone();
    let result = shared
        .verbs
        .run("image import", move |host| {
            let doing = || format!("open `{}`", path.display());
            let mut file = File::open(&path).map_err(|source| host::Error::os(doing(), source))?;
            host.datasets.import(image, &wanted.sha256, wanted.compression, &mut file)
        })
        .await;
    tracing::info!(%image, ms = shared.now_ms() - begun, ok = result.is_ok(), "imported image");
    result.map_err(|error| Why::Here(base::errors::chain(&error)))
}
