//! The manual, inside the binary: `neso manual` prints it, every headnode serves it at [`PATH`] to whoever asks.
//!
//! `build.rs` makes one page and one text of each chapter that `docs/SUMMARY.md` lists. A page needs nothing besides
//! itself, so the manual can be read while everything else is broken.

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};

/// Where the manual is served. No account's login can begin like this, so it takes nothing from CloudAPI.
pub const PATH: &str = "/docs/manual/";

/// A chapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chapter {
    /// What people type.
    pub name: &'static str,
    /// What people read first.
    pub title: &'static str,
    /// Markdown.
    pub text: &'static str,
    /// The same as a page of HTML, complete.
    pub page: &'static str,
}

static CHAPTERS: &[Chapter] = include!(concat!(env!("OUT_DIR"), "/chapters.rs"));

/// Every chapter, in reading order.
pub fn chapters() -> &'static [Chapter] {
    CHAPTERS
}

/// Serves the pages; needs no account and no state.
pub fn router() -> Router {
    Router::new()
        .route("/docs/manual", get(async || Redirect::permanent(PATH)))
        .route(PATH, get(async || page("")))
        .route("/docs/manual/{*name}", get(async |Path(name): Path<String>| page(&name)))
}

/// The page of a chapter by its file name; the first chapter without one.
fn page(name: &str) -> Response {
    let wanted = name.strip_suffix(".html").unwrap_or(name);
    let found = match wanted {
        "" | "index" => CHAPTERS.first(),
        wanted => CHAPTERS.iter().find(|chapter| chapter.name == wanted),
    };
    match found {
        Some(chapter) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], chapter.page).into_response(),
        None => (StatusCode::NOT_FOUND, "the manual has no such chapter\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_have_names_of_their_own_and_something_to_say() {
        let mut names: Vec<&str> = CHAPTERS.iter().map(|chapter| chapter.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHAPTERS.len());
        assert!(CHAPTERS.iter().all(|chapter| chapter.text.starts_with("# ") && chapter.page.contains("<h1>")));
    }

    #[test]
    fn links_between_chapters_lead_to_pages() {
        for chapter in CHAPTERS {
            for link in chapter.page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(!link.ends_with(".md") && !link.contains(".md#"), "{}: {link}", chapter.name);
            }
        }
    }

    #[test]
    fn a_page_is_found_by_its_file_name_and_a_wrong_one_is_not() {
        let first = CHAPTERS.first().expect("there is a chapter");
        assert_eq!(page("").status(), StatusCode::OK);
        assert_eq!(page(&format!("{}.html", first.name)).status(), StatusCode::OK);
        assert_eq!(page("../Cargo.toml").status(), StatusCode::NOT_FOUND);
    }
}
