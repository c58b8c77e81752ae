//! `neso adm recover`: a new beginning of the store from this machine's member. See [`headnode::members::recover`].

use std::{sync::Arc, time::Duration};

use base::{
    clock::{Clock as _, SystemClock},
    daemon::{self, PidFile},
};
use headnode::{
    Settings,
    members::recover::{self, Filled, Journal, Step, Survivor},
};
use model::time::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::{Output, ago, details};
use crate::{
    answer,
    context::Place,
    down::need_root,
    failure::{Failure, Outcome},
    install,
    progress::{self, Progress},
    supervise::{self, MEMBER},
};

/// Processes get this long to end.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// How often we look.
const POLL: Duration = Duration::from_millis(100);
/// The headnode gets this long to begin with the new store.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// What to type.
const AGAIN: &str = "`neso adm recover --from-this-member --yes` goes on where it stopped";

/// What to begin from.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// From what this machine's member holds, when too many others are gone for good. Without --yes it is only looked.
    #[arg(long, required = true)]
    from_this_member: bool,
    /// Do it. The other headnodes are dead, or cut off from nodes and tenants.
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Done {
    era: u64,
    lost: Vec<String>,
    aside: std::path::PathBuf,
}

/// Runs it.
pub(crate) async fn run(place: &Place, output: Output, command: Command) -> Outcome {
    need_root("begin the store anew")?;
    let settings = place.settings()?;
    let now = Timestamp(SystemClock.now_ms());
    let under_way = Journal::load(&settings)?;
    let survivor = match &under_way {
        Some(_) => None,
        None => Some(recover::look(&settings, now).await?),
    };
    match (command.yes, under_way, survivor) {
        (false, Some(journal), _) => {
            Err(Failure::new(format!("a new beginning is under way since {}", journal.begun_at)).mend(AGAIN))
        }
        (false, None, Some(survivor)) => show(output, &survivor, now),
        (true, Some(journal), _) => carry_out(place, &settings, output, journal).await,
        (true, None, Some(survivor)) => {
            let journal = Journal::begin(&settings, &survivor, now)?;
            carry_out(place, &settings, output, journal).await
        }
        (_, None, None) => Ok(()),
    }
}

fn show(output: Output, survivor: &Survivor, now: Timestamp) -> Outcome {
    output.show(survivor, |survivor| details(&lines(survivor, now)))?;
    output.say(
        "\nNothing was changed. With --yes, this machine's headnode and member end; the member's data are put aside; a new member \
         takes in all records they hold, which no member of before can join; the other headnodes are taken out of the records, and put themselves away \
         should they come back and hear of it. What was acknowledged and did not reach this member is lost.\n\
         Before that, make sure that every other headnode is dead, or cut off from nodes and tenants: two of them would go on with each other as if \
         nothing had happened. If two have data, begin from the one with the greater revision.",
    )
}

fn lines(survivor: &Survivor, now: Timestamp) -> Vec<(&'static str, String)> {
    let when =
        |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| format!("{at}, {}", ago(now, Some(at))));
    let mut lines = vec![
        ("member's data", survivor.data.display().to_string()),
        ("revision", survivor.revision.to_string()),
        ("records", survivor.records.to_string()),
        (
            "of them in its file",
            format!("up to revision {}, entry {} of its log", survivor.file_revision, survivor.applied),
        ),
        ("more in its log", from_log(survivor)),
        ("newest beat in it", when(survivor.last_beat)),
        ("newest backup here", when(survivor.newest_backup)),
    ];
    for one in &survivor.headnodes {
        let here = if one.is_here { ", this machine: stays" } else { ": does not answer, will be taken out" };
        lines.push(("headnode", format!("{} ({}), last beat {}{here}", one.name, one.address, when(one.last_beat))));
    }
    lines.push(("may be lost", "what others agreed to without this member, and acknowledged".to_owned()));
    if let Some(why) = &survivor.log_stopped {
        lines.push(("cannot be read", format!("what else stands in the log: {why}")));
    }
    lines
}

fn from_log(survivor: &Survivor) -> String {
    let Survivor { from_log, not_agreed, file_revision, revision, .. } = survivor;
    let entries = format!("{from_log}, up to revision {revision}");
    match (from_log, not_agreed) {
        (0, _) => "nothing".to_owned(),
        _ if file_revision == revision => format!("{from_log}, none of which changes a record"),
        (_, 0) => entries,
        _ => {
            format!("{entries}; whether the last {not_agreed} were agreed to this member did not hear: they are taken")
        }
    }
}

async fn carry_out(place: &Place, settings: &Settings, output: Output, mut journal: Journal) -> Outcome {
    let progress = if output.json { Progress::silent() } else { Progress::new() };
    let step = progress.step("Ending this machine's headnode and member");
    follow_units(place, settings).await?;
    // Held until the end: whoever starts a headnode is refused.
    let headnode_held = ended(settings, "headnode").await?;
    let mut member = Some(ended(settings, MEMBER).await?);
    step.done("they have ended");
    let mut lost = Vec::new();
    loop {
        let now = Timestamp(SystemClock.now_ms());
        match journal.step {
            Step::Aside => {
                let step = progress.step("Putting the member's data aside");
                journal.put_aside(settings)?;
                base::crash::point("headnode.recover.aside");
                journal.advance(settings, Step::Identity)?;
                step.done(&journal.aside_dir(settings).display().to_string());
                base::crash::point("neso.recover.aside");
            }
            Step::Identity => {
                let step = progress.step("Making another authority for the store");
                journal.make_identity(settings, now)?;
                journal.advance(settings, Step::Fill)?;
                step.done("no member of before can speak to this one");
                base::crash::point("neso.recover.identity");
            }
            Step::Fill => {
                let step = progress.step("Filling a new member with what they hold");
                journal.make_room(settings)?;
                // The member holds it.
                drop(member.take());
                lost = fill(place, settings, &journal, &step).await?;
                member = Some(ended(settings, MEMBER).await?);
                journal.advance(settings, Step::Switch)?;
                step.done(&match lost.as_slice() {
                    [] => "done".to_owned(),
                    lost => format!("{} taken out", lost.join(" and ")),
                });
                base::crash::point("neso.recover.fill");
            }
            Step::Switch => {
                journal.switch(settings)?;
                base::crash::point("neso.recover.switch");
                journal.end(settings)?;
                break;
            }
        }
    }
    drop((headnode_held, member));
    follow_units(place, settings).await?;
    await_headnode(place, settings, progress).await?;
    let done = Done { era: journal.era, lost, aside: journal.aside_dir(settings) };
    if output.json {
        return output.show(&done, |_| details(&[]));
    }
    answer::print(
        "The datacenter goes on with this headnode alone. `neso adm ha status` shows it; `neso adm ha add A B` makes it three again, also with machines that \
         were headnodes before, once they run and have put that away. What was put aside is not needed any more when all is well.",
    )?;
    Ok(())
}

/// The new member, for as long as it is filled.
async fn fill(place: &Place, settings: &Settings, journal: &Journal, step: &progress::Step) -> Outcome<Vec<String>> {
    let show = |Filled { records, of, is_read_back }: Filled| {
        let verb = if is_read_back { "read back" } else { "written" };
        step.say(&format!("{records} of {of} records {verb}"));
    };
    let mut arguments = place.arguments();
    arguments.extend([MEMBER.into(), "--supervised".into()]);
    let log = supervise::log_file(settings, MEMBER);
    let mut child = daemon::spawn_logged(&std::env::current_exe()?, arguments, &log)?;
    let done = tokio::select! {
        done = journal.fill(settings, Arc::new(SystemClock), &show) => done.map_err(Failure::from),
        ended = child.wait() => {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Failure::new(format!("this machine's member ended: {how}")).mend(format!("`{}` says why", log.display())))
        }
    };
    if let Some(pid) = child.id() {
        // It may end between the two calls.
        let _ = daemon::terminate(pid);
        if tokio::time::timeout(END_PATIENCE, child.wait()).await.is_err() {
            child.kill().await?;
        }
    }
    done
}

/// Waits until a process has ended, and keeps it from beginning.
async fn ended(settings: &Settings, name: &str) -> Outcome<PidFile> {
    let path = supervise::pid_file(settings, name);
    let begun = Instant::now();
    loop {
        match PidFile::take(&path) {
            Ok(held) => return Ok(held),
            Err(error) if begun.elapsed() > END_PATIENCE => return Err(Failure::from(error).mend(AGAIN)),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Under systemd there is no supervisor that follows the journal.
async fn follow_units(place: &Place, settings: &Settings) -> Outcome {
    match install::is_installed(place) {
        true => install::follow_role(place, settings).await,
        false => Ok(()),
    }
}

/// Where somebody starts it.
async fn await_headnode(place: &Place, settings: &Settings, progress: Progress) -> Outcome {
    if !install::is_installed(place) && PidFile::holder(&supervise::pid_file(settings, "supervisor")).is_none() {
        progress.step("Nothing runs here").done("`neso up` starts it");
        return Ok(());
    }
    let step = progress.step("Waiting for the headnode");
    let client = super::client(settings)?;
    let begun = Instant::now();
    loop {
        match client.headnodes().await {
            Ok(view) if view.waiting.is_none() => break,
            _ if begun.elapsed() > START_PATIENCE => {
                let log = supervise::log_file(settings, "headnode");
                return Err(Failure::new("the store was begun anew, but the headnode does not come up")
                    .mend(format!("`{}` says why", log.display())));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
    step.done("it answers");
    Ok(())
}
