//! `neso adm instance console`: what an instance wrote to its console, once or as it comes.
//!
//! A tenant's programs decide what is in there. On an operator's terminal a control character could move the cursor, rename
//! the window or type an answer, so all but line ends and tabs are shown as marks unless `--raw` is given.

use std::{io, time::Duration};

use opsapi::Client;

use super::Output;
use crate::{answer, failure::Outcome};

/// How often a follower asks for more: soon enough to watch a boot, and little work for the node.
const POLL: Duration = Duration::from_millis(500);
/// Bytes of one piece for a follower.
const PIECE_BYTES: u32 = 256 << 10;

/// How to print it.
pub(super) struct Options {
    /// At most so much of what is there.
    pub(super) max_bytes: u32,
    /// Go on.
    pub(super) follow: bool,
    /// Leave control characters alone.
    pub(super) raw: bool,
}

/// Runs it.
pub(super) async fn run(client: &Client, output: Output, instance: &str, options: Options) -> Outcome {
    let mut piece = client.console(instance, options.max_bytes, None).await?;
    if output.json && !options.follow {
        answer::print(serde_json::to_string_pretty(&piece)?)?;
        return Ok(());
    }
    // The name may come to mean another instance meanwhile.
    let id = piece.instance.to_string();
    loop {
        if piece.lost && say("\n[... some output is gone: the log keeps a bounded amount ...]\n")? {
            return Ok(());
        }
        let text = if options.raw { piece.text } else { shown(&piece.text) };
        if say(&text)? || !options.follow {
            return Ok(());
        }
        let whole = text.is_empty();
        let after = piece.next;
        if whole {
            tokio::time::sleep(POLL).await;
        }
        piece = client.console(&id, PIECE_BYTES, after.as_deref()).await?;
    }
}

/// Prints a text; true when nobody reads any more.
fn say(text: &str) -> io::Result<bool> {
    match answer::print_text(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(false),
    }
}

/// The text with control characters as marks: `^[` for escape. Carriage returns before a line end are the terminal's and left
/// out.
fn shown(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            '\0'..='\x1f' => {
                shown.push('^');
                shown.extend(char::from_u32(u32::from(character) + 0x40));
            }
            '\x7f' => shown.push_str("^?"),
            // The second set of control characters drives some terminals, too.
            '\u{80}'..='\u{9f}' => shown.push('\u{fffd}'),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(shown("a\r\nb\tc\r\n"), "a\nb\tc\n");
        assert_eq!(shown("\x1b[31mred\x07 \u{9b}2J\x7f\r"), "^[[31mred^G \u{fffd}2J^?^M");
        assert_eq!(shown("ü → 🦀"), "ü → 🦀");
    }
}
