//! How large a terminal is.

#![expect(
    unsafe_code,
    reason = "the question is an ioctl, which takes a pointer; it is to a structure of our own that outlives it"
)]

use std::os::fd::{AsFd, AsRawFd as _};

mod raw {
    nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
}

/// Columns and rows of the terminal that `of` is; `None` where it is none, or does not know.
pub fn size(of: &impl AsFd) -> Option<(u16, u16)> {
    let mut found = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for the length of the call, and the kernel writes one `winsize` to the pointer, which is valid for it.
    unsafe { raw::window_size(of.as_fd().as_raw_fd(), &raw mut found) }.ok()?;
    (found.ws_col > 0 && found.ws_row > 0).then_some((found.ws_col, found.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_tells_its_size_and_a_file_none() {
        let size_set = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size_set), None).unwrap();
        assert_eq!(size(&pair.slave), Some((80, 24)));
        assert_eq!(size(&tempfile::tempfile().unwrap()), None);
    }
}
