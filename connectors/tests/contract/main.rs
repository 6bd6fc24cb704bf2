//! The contract suite: every case runs over every kind of place of the `file` connector, against the real thing.
//!
//! A new kind of place is one constructor in `support` and one line in the list below; what it cannot do it says in
//! its `Abilities`. When the last case has ended, the table of all places and cases is printed.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod cases;
mod ftp;
mod marker;
mod memory;
mod race;
mod s3;
mod settings;
mod sftp;
mod smb;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod webdav;

use support::{
    dav::Kind::{Apache, Nginx},
    proftpd::Speaks,
    vsftpd::Tls,
};

macro_rules! contract {
    (places: { $($place:ident = $make:expr;)+ } cases: $cases:tt) => {
        /// In the order of the table's columns.
        const PLACES: &[&str] = &[$(stringify!($place)),+];
        contract!(@names $cases);
        $(contract!(@place $place, $make; $cases);)+
    };
    (@names { $($module:ident: $($case:ident),+;)+ }) => {
        /// In the order of the table's lines.
        const CASES: &[&str] = &[$($(stringify!($case)),+),+];
    };
    (@place $place:ident, $make:expr; { $($module:ident: $($case:ident),+;)+ }) => {
        mod $place {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let _running = table::begin(stringify!($place), stringify!($case));
                    cases::$module::$case(&mut $make).await;
                }
            )+)+
        }
    };
}

contract! {
places: {
    local = support::Place::local();
    sftp_openssh = support::Place::sftp();
    sftp_no_extensions = support::Place::sftp_without_extensions();
    sftp_proftpd = support::Place::proftpd(Speaks::Sftp, "");
    smb_signed = support::Place::smb(false);
    smb_encrypted = support::Place::smb(true);
    ftp_vsftpd = support::Place::ftp(Tls::None);
    ftps_vsftpd = support::Place::ftp(Tls::Explicit);
    ftp_proftpd = support::Place::proftpd(Speaks::Ftp, "");
    ftps_proftpd = support::Place::proftpd(Speaks::Ftps, "");
    webdav_nginx = support::Place::webdav(Nginx);
    webdav_apache = support::Place::webdav(Apache);
    webdavs_nginx = support::Place::webdavs(Nginx);
}
cases: {
    dropping:
        files_of_every_size_arrive_byte_for_byte,
        odd_names_arrive,
        replacing_is_never_seen_half_done,
        fail_leaves_what_is_there,
        suffix_takes_the_next_free_name,
        concurrent_suffixes_never_meet,
        whoever_loses_a_name_has_nothing_left_there,
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
        a_part_that_another_agent_may_have_taken_away_proves_less,
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
        an_interrupted_move_is_decided_by_the_file,
        what_was_set_aside_to_be_replaced_is_found_again,
        a_file_set_aside_to_be_moved_onto_itself_is_put_back;
    reading:
        fetch_gives_content_and_time,
        fetch_refuses_what_is_not_a_file,
        fetch_stops_at_the_allowed_size,
        stat_shows_one_item,
        list_pages_through_a_large_folder,
        long_names_make_shorter_pages,
        list_filters_and_descends,
        a_listing_tells_of_nothing_that_is_not_visible,
        list_goes_on_while_files_come_and_go;
    names:
        names_that_mean_something_elsewhere_arrive,
        names_that_windows_forbids_arrive_or_are_denied,
        names_in_two_forms_of_unicode_are_two,
        a_name_in_another_case_is_never_replaced_unasked,
        the_longest_names_and_paths_arrive_or_are_denied,
        names_that_are_not_utf_8_are_counted;
    faults:
        a_server_killed_while_writing_is_a_retry,
        a_server_frozen_while_writing_ends_in_time,
        a_half_open_line_ends_in_time,
        an_effect_whose_answer_is_lost_happens_once,
        an_effect_that_was_done_and_refused_is_told_as_done,
        a_stranger_in_its_place_gets_nothing,
        what_the_account_may_not_do_is_refused;
    changing:
        delete_is_done_when_absent,
        delete_refuses_folders,
        move_obeys_on_conflict,
        move_needs_its_source_and_folder,
        a_file_moved_onto_itself_stays,
        the_gate_is_asked_before_each_effect,
        the_probe_finds_the_folder;
    then:
        what_was_fetched_is_deleted_or_moved,
        nothing_follows_before_the_content_is_kept,
        a_file_put_in_the_place_of_what_was_fetched_stays,
        what_was_fetched_moves_only_to_a_free_place_that_is_there,
        what_follows_a_fetch_is_finished_by_what_is_found,
        another_file_that_was_set_aside_is_put_back,
        a_cancelled_fetch_looks_what_followed,
        what_follows_a_fetch_is_only_what_its_own_job_could_have_chosen;
    trigger:
        a_scan_pages_through_files_alone,
        a_file_is_read_only_as_it_was_seen,
        the_file_that_was_read_is_deleted_or_moved,
        a_newer_file_of_the_same_name_is_never_deleted,
        a_settling_that_was_cut_off_anywhere_is_finished;
}}
