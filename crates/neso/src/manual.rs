//! `neso manual`: the manual inside the binary, on the terminal.

use crate::{
    answer,
    failure::{Failure, Outcome},
};

/// Prints a chapter, or the list of them.
pub(crate) fn run(chapter: Option<&str>) -> Outcome {
    let Some(wanted) = chapter else {
        for chapter in headnode::manual::chapters() {
            answer::print(format_args!("{:<24} {}", chapter.name, chapter.title))?;
        }
        return Ok(());
    };
    let found = headnode::manual::chapters().iter().find(|chapter| chapter.name == wanted);
    let chapter = found.ok_or_else(|| {
        Failure::new(format!("the manual has no chapter \"{wanted}\"")).mend("`neso manual` lists them")
    })?;
    Ok(answer::print(chapter.text)?)
}
