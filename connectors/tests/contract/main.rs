//! The contract suite: every case runs over every kind of place of the `file` connector, against the real thing.
//!
//! A new kind of place is one constructor in `support` and one line in the list below; what it cannot do it says in
//! its `Abilities`.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod cases;
mod ftp;
mod memory;
mod race;
mod settings;
mod sftp;
mod smb;
#[path = "../support/mod.rs"]
mod support;
mod webdav;

macro_rules! contract {
    ($($module:ident: $($case:ident),+;)+) => {
        contract!(@place local, support::Place::local(); $($module: $($case),+;)+);
        contract!(@place ftp_server, support::Place::ftp(support::vsftpd::Tls::None); $($module: $($case),+;)+);
        contract!(@place ftps_server, support::Place::ftp(support::vsftpd::Tls::Explicit); $($module: $($case),+;)+);
        contract!(@place sftp_server, support::Place::sftp(); $($module: $($case),+;)+);
        contract!(@place smb_signed, support::Place::smb(false); $($module: $($case),+;)+);
        contract!(@place smb_encrypted, support::Place::smb(true); $($module: $($case),+;)+);
        contract!(@place webdav_apache, support::Place::webdav(support::dav::Kind::Apache); $($module: $($case),+;)+);
        contract!(@place webdav_nginx, support::Place::webdav(support::dav::Kind::Nginx); $($module: $($case),+;)+);
    };
    (@place $place:ident, $make:expr; $($module:ident: $($case:ident),+;)+) => {
        mod $place {
            use super::{cases, support};
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    cases::$module::$case(&$make).await;
                }
            )+)+
        }
    };
}

contract! {
    dropping:
        files_of_every_size_arrive_byte_for_byte,
        odd_names_arrive,
        replacing_is_never_seen_half_done,
        fail_leaves_what_is_there,
        suffix_takes_the_next_free_name,
        concurrent_suffixes_never_meet,
        missing_folders_are_made_only_if_asked,
        a_wrong_digest_or_size_leaves_nothing,
        cancelling_leaves_nothing,
        a_folder_of_that_name_is_a_conflict;
    jail:
        links_that_lead_out_are_denied,
        links_that_stay_inside_work,
        bad_paths_are_denied;
    crash:
        an_intent_with_its_part_is_finished,
        a_cancelled_attempt_looks_what_the_one_before_did,
        an_intent_whose_part_is_gone_was_done,
        a_part_gone_from_another_folder_is_unknown,
        a_part_gone_that_was_never_synced_is_unknown,
        an_unsynced_part_that_became_the_target_was_renamed,
        a_damaged_part_is_written_anew,
        a_rename_cut_in_two_is_completed,
        a_suffix_taken_meanwhile_is_replaced_by_the_next,
        an_intent_of_something_else_does_nothing,
        an_intent_that_leads_elsewhere_does_nothing,
        leftovers_of_the_same_job_are_removed,
        what_an_attempt_left_is_named_and_cleaned_up,
        a_damaged_part_stays_until_its_intent_is_withdrawn,
        an_interrupted_delete_spares_a_newer_file,
        an_interrupted_move_is_decided_by_the_file;
    reading:
        fetch_gives_content_and_time,
        fetch_refuses_what_is_not_a_file,
        fetch_stops_at_the_allowed_size,
        fetch_with_then_is_not_offered_yet,
        stat_shows_one_item,
        list_pages_through_a_large_folder,
        list_filters_and_descends,
        a_listing_tells_of_nothing_that_is_not_visible,
        list_goes_on_while_files_come_and_go;
    changing:
        delete_is_done_when_absent,
        delete_refuses_folders,
        move_obeys_on_conflict,
        move_needs_its_source_and_folder,
        the_gate_is_asked_before_each_effect,
        the_probe_finds_the_folder;
}
