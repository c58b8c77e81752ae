//! Every metric that a headnode tells of itself, of its store and of the datacenter as it knows it: the one list.
//!
//! Base units (seconds, bytes), `_total` at the end of what only grows. Labels take few values: names of routes, kinds, loops, tables, headnodes
//! and machines; never an instance, an account or a path.

use model::metrics::{Family, Kind};

macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal;)*) => {
        $(pub(super) const $id: Family = Family { name: $name, kind: Kind::$kind, help: $help };)*
        /// All of them.
        pub const ALL: &[Family] = &[$($id),*];
    };
}

families! {
    BUILD Gauge "neso_build_info" "1, with the release of the program.";
    STARTED Gauge "process_start_time_seconds" "When the headnode's process began, seconds since 1970.";
    CPU Counter "process_cpu_seconds_total" "CPU time the headnode used, seconds.";
    RESIDENT Gauge "process_resident_memory_bytes" "Memory of the headnode that is in RAM, bytes.";
    OPEN_FILES Gauge "process_open_fds" "Files and connections the headnode has open.";
    MAX_FILES Gauge "process_max_fds" "Files and connections the headnode may have open.";
    THREADS Gauge "process_threads" "Threads of the headnode.";

    REQUESTS Counter "neso_http_requests_total" "Requests answered, by door, method, route and status.";
    REQUEST_SECONDS Histogram "neso_http_request_duration_seconds" "How long answers took, by door, method and route, seconds.";
    REQUESTS_RUNNING Gauge "neso_http_requests_running" "Requests being answered, by door.";
    REQUESTS_ABANDONED Counter "neso_http_requests_abandoned_total" "Requests whose client went away before the answer, by door.";
    INQUIRIES Gauge "neso_inquiries_open" "Questions to machines that wait for an answer.";

    FLOWS Gauge "neso_flows" "Flows that have not ended, by kind and state; parked ones need a person.";
    FLOW_OLDEST Gauge "neso_flow_oldest_age_seconds" "Age of the oldest flow of a kind and state, seconds.";
    LOOP_AGE Gauge "neso_loop_age_seconds" "Time since a loop's last good pass, or since it was started, seconds.";
    LOOP_PERIOD Gauge "neso_loop_period_seconds" "Longest time between a loop's passes, seconds.";
    LOOP_PASSES Counter "neso_loop_passes_total" "Passes of a loop.";
    LOOP_FAILURES Gauge "neso_loop_failures" "Failed passes of a loop since its last good one.";

    STORE_REVISION Gauge "neso_store_revision" "Revision of the newest record that this headnode sees.";
    STORE_RECORDS Gauge "neso_store_records" "Records, by table.";
    STORE_COMMIT Histogram "neso_store_commit_duration_seconds" "How long the store took to keep a group of decisions, seconds.";
    STORE_CONFLICTS Counter "neso_store_conflicts_total" "Groups of decisions that another headnode was faster than.";
    STORE_FAILURES Counter "neso_store_failures_total" "Groups of decisions that the store failed to keep.";
    STORE_AGAIN Counter "neso_store_decided_again_total" "Decisions made anew because what they saw did not come true.";
    STORE_WAITING Gauge "neso_store_writers_waiting" "Callers that wait for what they wrote.";
    STORE_SILENT Gauge "neso_store_silent_seconds" "For how long the store has not said how far it is while somebody asks, seconds.";
    STORE_MAJORITY Gauge "neso_store_majority" "Whether the store has a majority (1), or changes nothing (0).";
    STORE_FREE Gauge "neso_store_free_bytes" "Bytes that are free next to the headnode's files.";
    MEMBER_UP Gauge "neso_member_up" "Whether a member of the store answers (1) or not (0).";
    MEMBER_VOTING Gauge "neso_member_voting" "Whether a member of the store has a vote.";
    MEMBER_LEADS Gauge "neso_member_leads" "Whether a member of the store leads it.";
    MEMBER_SIZE Gauge "neso_member_size_bytes" "Size of a member's file, bytes.";
    MEMBER_USED Gauge "neso_member_used_bytes" "What is used of a member's file, bytes.";
    MEMBER_QUOTA Gauge "neso_member_quota_bytes" "How large a member's file may become, bytes.";
    MEMBER_BEHIND Gauge "neso_member_behind_entries" "Entries of the log that a member has not applied yet.";
    MEMBER_ALARMS Gauge "neso_member_alarms" "What a member complains about, in number.";

    HEADNODE_FRESH Gauge "neso_headnode_beating" "Whether a headnode's beats arrive in time (1) or not (0).";
    HEADNODE_WORKS Gauge "neso_headnode_works" "Whether a headnode has a share of the work.";
    HEADNODE_AGE Gauge "neso_headnode_beat_age_seconds" "Time since a headnode's last beat arrived, seconds.";
    HEADNODE_SICK Gauge "neso_headnode_sick" "Whether a headnode does not trust itself to work.";
    HEADNODE_COMMIT Gauge "neso_headnode_commit_seconds" "Median of what a headnode's last beats took to be kept, seconds.";
    HEADNODE_LAG Gauge "neso_headnode_lag_seconds" "By how much beats of others arrived late at a headnode, the largest, seconds.";
    HEADNODE_BEHIND Gauge "neso_headnode_behind_seconds" "For how long the store has been further than a headnode's member, or than what it shows; the longer one, seconds.";
    HEADNODE_CLOCK Gauge "neso_headnode_clock_offset_seconds" "How far a headnode's clock is ahead of the others', seconds.";
    HEADNODE_SYNC Gauge "neso_headnode_sync_seconds" "How long a headnode's disk takes to keep a little for good, seconds.";
    HEADNODE_IMAGES Gauge "neso_headnode_images_missing" "Files of images that a headnode should have and has not.";

    NODE_REACHABLE Gauge "neso_node_reachable" "Whether a machine reports, or has said that it will again (1), or is silent (0).";
    NODE_CONDITION Gauge "neso_node_condition" "1, with the condition a machine is in.";
    NODE_AGE Gauge "neso_node_report_age_seconds" "Time since a machine's last report, seconds.";
    NODE_LINKED Gauge "neso_node_linked" "Whether a machine reports to this headnode.";
    NODE_BEHIND Gauge "neso_node_target_behind" "Generations of its document that a machine has not written down yet.";
    NODE_ACCEPTS Gauge "neso_node_accepts_instances" "Whether a machine takes new instances.";
    NODE_INSTANCES Gauge "neso_node_instances" "Instances placed on a machine.";
    NODE_STRANGERS Gauge "neso_node_strangers" "Instances a machine has that no record knows as its own.";
    NODE_MEMORY Gauge "neso_node_memory_bytes" "Memory of a machine, bytes.";
    NODE_MEMORY_RESERVED Gauge "neso_node_memory_reserved_bytes" "Memory of a machine that is promised to instances, bytes.";
    NODE_POOL Gauge "neso_node_disk_bytes" "Size of a machine's pool, as placement knows it, bytes.";
    NODE_POOL_RESERVED Gauge "neso_node_disk_reserved_bytes" "Disk of a machine that is promised to instances, bytes.";
    NODE_CLOCK Gauge "neso_node_clock_offset_seconds" "How far a machine's clock is ahead of the headnode's, seconds.";
    NODE_CERTIFICATE Gauge "neso_node_certificate_left_seconds" "Time to the end of the certificate a machine last showed here, seconds.";

    INSTANCES Gauge "neso_instances" "Instances, by state.";
    CERTIFICATE Gauge "neso_certificate_left_seconds" "Time to the end of a certificate on this machine, seconds.";
    BACKUP_AGE Gauge "neso_backup_age_seconds" "Age of the newest backup, seconds.";
    BACKUP_PERIOD Gauge "neso_backup_period_seconds" "Time between backups by the settings, seconds; 0 is never.";
    BACKUP_OVERDUE Gauge "neso_backup_overdue" "Whether the newest backup is older than it should be.";
    BACKUP_MISSING Gauge "neso_backup_copies_missing" "Places where the newest backup should lie too and does not.";

    DNS_UP Gauge "neso_dns_up" "Whether the name server answers at all its addresses.";
    DNS_QUERIES Counter "neso_dns_queries_total" "Questions for names, by transport.";
    DNS_ANSWERS Counter "neso_dns_answers_total" "Answers to questions for names, by response code.";
    DNS_UNANSWERED Counter "neso_dns_unanswered_total" "What the name server did not answer, or cut short, and why.";
    DNS_TRANSFERS Counter "neso_dns_transfers_total" "Transfers of zones, by what came of them.";
    DNS_NOTIFIES Counter "neso_dns_notifies_total" "Messages about changed zones, by what came of them.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_say_what_they_are() {
        let names: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name stands for two things");
        for Family { name, kind, help } in ALL {
            let told = name.starts_with("neso_") || name.starts_with("process_");
            assert!(told && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            if help.contains("seconds") {
                assert!(name.contains("_seconds"), "{name} is in seconds and does not say so");
            }
            if help.contains(", bytes") || help.starts_with("Bytes") {
                assert!(name.ends_with("_bytes"), "{name} is in bytes and does not say so");
            }
        }
    }
}
