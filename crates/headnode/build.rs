//! Builds the manual into the binary: every chapter `docs/SUMMARY.md` lists, as its Markdown and as a page.
//!
//! The sources are an mdBook (`mdbook serve docs` works for writers); the pages are rendered here by the parser mdBook
//! uses, with a frame of our own, because mdBook itself costs a minute of building. Links between chapters keep working:
//! `x.md` becomes `x.html`.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, html};

struct Chapter {
    name: String,
    title: String,
    depth: usize,
    text: String,
}

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let docs = here.join("../../docs").canonicalize().expect("the repository has docs/");
    // Relative, here and in what is generated: a build directory may serve several checkouts, and move.
    println!("cargo::rerun-if-changed=../../docs");
    println!("cargo::rerun-if-changed=build.rs");

    let summary = fs::read_to_string(docs.join("SUMMARY.md")).expect("docs/SUMMARY.md can be read");
    let chapters: Vec<Chapter> = summary.lines().filter_map(|line| chapter(&docs, line)).collect();
    assert!(!chapters.is_empty(), "docs/SUMMARY.md lists no chapter");

    let mut table = String::from("&[\n");
    for (number, chapter) in chapters.iter().enumerate() {
        let page = format!("chapter-{number}.html");
        fs::write(out.join(&page), frame(&chapters, chapter)).expect("OUT_DIR can be written");
        writeln!(
            table,
            "Chapter {{ name: {:?}, title: {:?}, text: {}, page: {} }},",
            chapter.name,
            chapter.title,
            included("CARGO_MANIFEST_DIR", &format!("../../docs/{}.md", chapter.name)),
            included("OUT_DIR", &page)
        )
        .expect("a string can be written to");
    }
    table.push(']');
    fs::write(out.join("chapters.rs"), table).expect("OUT_DIR can be written");
}

/// The expression for a file's text, found from a directory cargo names when it compiles.
fn included(variable: &str, path: &str) -> String {
    format!("include_str!(concat!(env!({variable:?}), {:?}))", format!("/{path}"))
}

/// The chapter a line of the summary lists, if it lists one.
fn chapter(docs: &Path, line: &str) -> Option<Chapter> {
    let (before, rest) = line.split_once('[')?;
    let (title, rest) = rest.split_once("](")?;
    let path = rest.split(')').next()?;
    let name = path.trim_start_matches("./").strip_suffix(".md")?.to_owned();
    let file = docs.join(path);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    Some(Chapter {
        name,
        title: title.to_owned(),
        depth: before.chars().filter(|letter| *letter == ' ').count() / 2,
        text,
    })
}

const STYLE: &str = "body{margin:0;font:16px/1.55 system-ui,sans-serif;color:#1d2430;background:#fff;display:flex}\
nav{flex:0 0 17rem;padding:1.5rem 1rem;background:#f4f6f9;min-height:100vh;box-sizing:border-box;font-size:.92rem}\
nav a{display:block;padding:.15rem .4rem;color:#33475b;text-decoration:none;border-radius:4px}nav a.here{background:#dbe5f1}\
main{max-width:48rem;padding:1.5rem 2.5rem;min-width:0}h1,h2,h3{line-height:1.25}a{color:#0b5cad}\
pre{background:#f4f6f9;padding:.8rem 1rem;overflow:auto;border-radius:6px}code{font:.92em ui-monospace,monospace}\
table{border-collapse:collapse;display:block;overflow:auto}td,th{border:1px solid #cfd8e3;padding:.3rem .6rem;text-align:left;vertical-align:top}\
@media(max-width:50rem){body{display:block}nav{min-height:0}main{padding:1rem}}\
@media(prefers-color-scheme:dark){body{background:#14181f;color:#d8dee8}nav,pre{background:#1c222c}nav a{color:#aebccd}nav a.here{background:#2b3646}a{color:#79b3f2}td,th{border-color:#364152}}";

fn frame(chapters: &[Chapter], here: &Chapter) -> String {
    // Chapters may lie in a directory; links from there climb out of it.
    let up = "../".repeat(here.name.matches('/').count());
    let mut links = String::new();
    for chapter in chapters {
        writeln!(
            links,
            "<a href=\"{up}{}.html\" style=\"margin-left:{}rem\"{}>{}</a>",
            chapter.name,
            chapter.depth,
            if chapter.name == here.name { " class=\"here\"" } else { "" },
            escaped(&chapter.title)
        )
        .expect("a string can be written to");
    }
    let title = escaped(&here.title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title} – Neso</title><style>{STYLE}</style></head>\n\
         <body><nav>{links}</nav><main>\n{}</main></body></html>\n",
        rendered(&here.text)
    )
}

fn rendered(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
    let events = Parser::new_ext(markdown, options).map(|event| match event {
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            Event::Start(Tag::Link { link_type, dest_url: page_of(&dest_url), title, id })
        }
        other => other,
    });
    let mut page = String::new();
    html::push_html(&mut page, events);
    page
}

/// Where a link leads once chapters are pages.
fn page_of(link: &str) -> CowStr<'static> {
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let file = match file.strip_suffix(".md") {
        Some(name) if !file.contains("://") => format!("{name}.html"),
        _ => file.to_owned(),
    };
    CowStr::from(anchor.map_or(file.clone(), |anchor| format!("{file}#{anchor}")))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
