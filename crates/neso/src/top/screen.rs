//! A picture on a terminal of limited size.

use std::io;

use crate::{answer, failure::Outcome};

/// What a terminal has that does not say so.
const SIZE: (u16, u16) = (80, 24);

/// What is on the screen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Whatever it is, it goes.
    Anything,
    /// A picture of ours: what is drawn over it does not flicker.
    Picture,
}

/// Columns and rows there are.
pub(super) fn size() -> (u16, u16) {
    host::linux::terminal::size(&io::stdout()).unwrap_or(SIZE)
}

/// Draws a picture. Nothing of the terminal is changed but what is on it, so that there is nothing to be put right again, however this ends.
pub(super) fn draw(text: &str, before: Before) -> Outcome {
    Ok(answer::print_text(&drawn(text, before, size()))?)
}

fn drawn(text: &str, before: Before, size: (u16, u16)) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_ALL: &str = "\x1b[2J";
    const CLEAR_REST_OF_LINE: &str = "\x1b[K";
    const CLEAR_BELOW: &str = "\x1b[J";
    let mut drawn = match before {
        Before::Anything => format!("{CLEAR_ALL}{HOME}"),
        Before::Picture => HOME.to_owned(),
    };
    // The last column stays free: what clears the rest of a line would clear it on some terminals.
    for line in fit(text, (size.0.saturating_sub(1), size.1)) {
        drawn.push_str(&line);
        drawn.push_str(CLEAR_REST_OF_LINE);
        drawn.push('\n');
    }
    drawn.push_str(CLEAR_BELOW);
    drawn
}

/// As much of `text` as a screen of so many columns and rows shows, the last row left free for the cursor. What is cut is seen to be cut.
/// Characters that would move the cursor are blanks, and each that is not ASCII counts as two columns, as wide ones are.
fn fit(text: &str, (columns, rows): (u16, u16)) -> Vec<String> {
    let (columns, rows) = (usize::from(columns).max(1), usize::from(rows.saturating_sub(1)).max(1));
    let mut lines: Vec<String> = text.lines().map(|line| cut(line, columns)).collect();
    if lines.len() > rows {
        let more = lines.len() - (rows - 1);
        lines.truncate(rows - 1);
        lines.push(cut(&format!("… {more} lines more"), columns));
    }
    lines
}

fn cut(line: &str, columns: usize) -> String {
    let width = |one: char| if one.is_ascii() { 1 } else { 2 };
    let clean = |one: char| if one.is_control() { ' ' } else { one };
    let line = line.trim_end();
    if line.chars().map(width).sum::<usize>() <= columns {
        return line.chars().map(clean).collect();
    }
    let mut left = columns.saturating_sub(width('…'));
    let fits = |one: &char| {
        let rest = left.checked_sub(width(*one));
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let mut kept: String = line.chars().take_while(fits).map(clean).collect();
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_screen_and_seen_to_be() {
        assert_eq!(fit("abc\ndefghij  \n", (6, 10)), ["abc", "defg…"]);
        assert_eq!(fit("abcdef", (6, 10)), ["abcdef"]);
        assert_eq!(fit("1\n2\n3\n4\n5", (80, 4)), ["1", "2", "… 3 lines more"]);
        assert_eq!(fit("1\n2\n3", (80, 4)), ["1", "2", "3"]);
        assert_eq!(fit("wide", (1, 1)), ["…"]);
        assert_eq!(fit("日本語", (5, 2)), ["日…"]);
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(fit("a\u{1b}[2Jb\tc\u{7f}\u{9b}", (80, 24)), ["a [2Jb c  "]);
    }

    #[test]
    fn a_picture_covers_the_one_before() {
        let drawn = drawn("new", Before::Picture, (80, 24));
        assert_eq!(drawn, "\u{1b}[Hnew\u{1b}[K\n\u{1b}[J");
    }
}
