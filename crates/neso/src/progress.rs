//! Progress for people: a bar or spinner on a terminal, one line per event elsewhere (logs, CI).

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Redraws of a spinner.
const TICK: Duration = Duration::from_millis(120);

/// Characters of what a step says it does; tools are talkative.
const DETAIL_MAX: usize = 80;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminal,
    Lines,
    Silent,
}

/// Shows steps. Output goes to standard error, answers to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(Mode);

impl Progress {
    /// For the standard error of this process.
    pub(crate) fn new() -> Self {
        Self(match ProgressDrawTarget::stderr().is_hidden() {
            true => Mode::Lines,
            false => Mode::Terminal,
        })
    }

    /// Shows nothing.
    pub(crate) const fn silent() -> Self {
        Self(Mode::Silent)
    }

    /// Begins a step that takes unknown time.
    pub(crate) fn step(self, what: impl Into<Cow<'static, str>>) -> Step {
        let what = what.into();
        let bar = match self.0 {
            Mode::Terminal => {
                let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed:.dim}"));
                bar.set_message(what.clone());
                bar.enable_steady_tick(TICK);
                Some(bar)
            }
            Mode::Lines | Mode::Silent => None,
        };
        Step { bar, what, mode: self.0 }
    }

    /// Begins a transfer of `total` bytes.
    pub(crate) fn transfer(self, what: impl Into<Cow<'static, str>>, total: u64) -> Step {
        let what = what.into();
        let bar = match self.0 {
            Mode::Terminal => {
                let template = "  {msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = ProgressBar::new(total).with_style(style(template));
                bar.set_message(what.clone());
                Some(bar)
            }
            Mode::Lines | Mode::Silent => None,
        };
        Step { bar, what, mode: self.0 }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A step under way. Dropped without [`Step::done`], it vanishes: the error that follows says the rest.
#[derive(Debug)]
pub(crate) struct Step {
    bar: Option<ProgressBar>,
    what: Cow<'static, str>,
    mode: Mode,
}

impl Step {
    /// Changes what the step says it does.
    pub(crate) fn say(&self, detail: &str) {
        let detail: String = detail.chars().take(DETAIL_MAX).collect();
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {detail}", self.what)),
            None if self.mode == Mode::Lines => eprintln!("    {}: {detail}", self.what),
            None => (),
        }
    }

    /// A handle for another thread to move the bar.
    pub(crate) fn mover(&self) -> impl Fn(u64) + Send + 'static {
        let bar = self.bar.clone();
        move |position| {
            if let Some(bar) = &bar {
                bar.set_position(position);
            }
        }
    }

    /// Ends the step with what came of it.
    pub(crate) fn done(self, result: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.mode != Mode::Silent {
            let separator = if result.is_empty() { "" } else { ": " };
            eprintln!("  {}{separator}{result}", self.what);
        }
    }

    /// Ends the step without a word: there was nothing to do.
    pub(crate) fn unchanged(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}
