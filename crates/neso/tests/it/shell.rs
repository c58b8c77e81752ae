//! A shell inside an instance, over nothing but the product: the tenant puts a command into the metadata, a loop in the guest's
//! `user-script` runs it with all that limits a guest, and what it said comes back as metadata.

use std::{cell::Cell, fs, path::Path};

use serde_json::Value;

use crate::datacenter::Datacenter;

/// The loop. A command is run once, also when it is what reboots the guest, or when the disk is full.
const LOOP: &str = r#"#!/bin/sh
asked=$(cat /asked 2>/dev/null)
while :; do
    ask=$(mdata-get ask 2>/dev/null)
    if [ -n "$ask" ] && [ "${ask%% *}" != "$asked" ]; then
        asked=${ask%% *}
        echo "$asked" >/asked
        said=$(sh -c "${ask#* }" 2>&1 </dev/null; echo "= $?")
        mdata-put said "${ask%% *} $said"
    fi
    sleep 0.1
done
"#;

/// An instance that runs the loop.
pub(crate) struct Guest<'a> {
    pub(crate) datacenter: &'a Datacenter,
    pub(crate) name: &'a str,
    pub(crate) id: String,
    asked: Cell<u32>,
}

impl<'a> Guest<'a> {
    /// Makes one and waits until it runs.
    pub(crate) fn create(datacenter: &'a Datacenter, name: &'a str, package: &str) -> Self {
        let script = datacenter.settings().paths.run.join("loop.sh");
        fs::write(&script, LOOP).expect("the script is written");
        let script = script.display().to_string();
        datacenter.good(&["instance", "create", "-w", "--name", name, "--script", &script, "minimal", package]);
        let id = datacenter.json(&["adm", "-j", "instance", "get", name])["id"].as_str().expect("an id").to_owned();
        Self { datacenter, name, id, asked: Cell::new(0) }
    }

    /// Gives it a command without waiting for what it says.
    pub(crate) fn tell(&self, command: &str) -> u32 {
        self.asked.set(self.asked.get() + 1);
        let ask = format!("ask={} {command}", self.asked.get());
        self.datacenter.good(&["instance", "metadata", self.name, &ask]);
        self.asked.get()
    }

    /// Runs a command; what it said on both outputs, and its exit status.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> (String, i32) {
        let number = format!("{} ", self.tell(command));
        let mut said = None;
        self.datacenter.wait(&format!("{} to have run `{command}`", self.name), || {
            let metadata = self.datacenter.ask(&["instance", "metadata", "-j", self.name]);
            let text = metadata.and_then(|metadata| Some(metadata["said"].as_str()?.to_owned()));
            said = text.and_then(|text| text.strip_prefix(&number).map(str::to_owned));
            said.is_some()
        });
        let said = said.expect("it was waited for");
        let (text, status) = said.rsplit_once("= ").expect("the loop appends the status");
        (text.trim().to_owned(), status.trim().parse().expect("a status is a number"))
    }

    /// The instance as operators see it.
    pub(crate) fn record(&self) -> Value {
        self.datacenter.json(&["adm", "-j", "instance", "get", &self.id])
    }

    /// Waits until its record is so.
    #[track_caller]
    pub(crate) fn wait_record(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut record = Value::Null;
        self.datacenter.wait(&format!("{}: {what}", self.name), || {
            record = self.datacenter.ask(&["adm", "-j", "instance", "get", &self.id]).unwrap_or_default();
            so(&record)
        });
        record
    }

    /// A number in a file of the instance's control groups, whichever hierarchy has it; of a file of many, by its name.
    pub(crate) fn group(&self, file: &str, field: Option<&str>) -> Option<u64> {
        let settings = self.datacenter.settings();
        ["unified", "cpu", "cpu,cpuacct", "memory", "pids", ""].iter().find_map(|hierarchy| {
            let group = Path::new("/sys/fs/cgroup").join(hierarchy).join(&settings.kernel.cgroup);
            let text = fs::read_to_string(group.join(format!("zone-{}", self.id)).join(file)).ok()?;
            match field {
                None => text.trim().parse().ok(),
                Some(field) => text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()),
            }
        })
    }
}
