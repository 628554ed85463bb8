"""The numbers of the catalogue that are no matter of one request to one server: where they are tested, or why not."""

from __future__ import annotations

SERVER = "tests/serve/test_server.py"
ONNX = "tests/sources/test_onnx_file.py"
WEIGHTS = "tests/sources/test_torch_weights.py"
FITNESS = "tests/backends/tensorrt/test_fitness.py"
ROUTER = "tests/serve/releases/test_router.py"
BREAKER = "tests/serve/releases/test_breaker.py"
STANDING = "tests/serve/test_standing_by.py"
DRILLS = "tests/serve/test_drills_http.py::test_a_fault_is_rolled_back_without_a_lost_request"

# Number → tests, as pytest names them without parameters.
ELSEWHERE: dict[int, tuple[str, ...]] = {
    10: (
        "tests/serve/protocol/test_request.py::test_10_a_dimension_outside_the_engines_range_is_refused_with_min_opt_and_max",
        "tests/serve/protocol/test_request.py::test_10_the_ends_of_the_engines_range_are_taken",
    ),
    52: (
        "tests/serve/test_pool.py::test_at_twice_the_capacity_every_accepted_request_is_answered_right_and_the_queue_stays_bounded",
    ),
    54: (f"{SERVER}::test_a_failed_warm_up_leaves_the_server_up_and_not_ready_with_the_reason",),
    55: (f"{SERVER}::test_sigterm_under_load_drops_nothing_that_was_accepted",),
    56: (f"{SERVER}::test_a_second_sigterm_forces_the_end",),
    57: ("tests/serve/test_pool_faults.py::test_a_worker_that_dies_is_replaced_by_a_warm_one",),
    61: (f"{SERVER}::test_a_port_in_use_is_one_clear_line",),
    62: (
        "tests/serve/releases/test_router_threads.py::test_no_request_is_lost_or_mixed_up_while_a_release_fails_is_probed_and_moved_by_hand",
    ),
    63: (
        f"{STANDING}::test_a_candidate_that_cannot_be_loaded_is_left_out_and_the_rest_serves",
        f"{STANDING}::test_a_candidate_that_is_wrong_on_this_machine_is_never_given_work",
    ),
    65: (f"{WEIGHTS}::test_a_pickle_that_wants_to_run_code_is_refused_by_name_and_does_not_run",),
    66: (
        f"{WEIGHTS}::test_a_torchscript_program_is_no_checkpoint",
        f"{WEIGHTS}::test_another_zip_archive_is_no_checkpoint",
    ),
    68: (
        f"{ONNX}::test_external_data_above_the_folder_is_refused",
        f"{ONNX}::test_external_data_with_an_absolute_path_is_refused_even_inside_the_folder",
        f"{ONNX}::test_external_data_through_a_link_that_leaves_the_folder_is_refused",
        f"{ONNX}::test_truncated_external_data_is_named_with_the_weight",
        f"{ONNX}::test_external_data_with_a_false_length_is_refused",
    ),
    69: (
        f"{ONNX}::test_a_truncated_file_is_called_truncated",
        f"{ONNX}::test_another_format_is_recognised",
        f"{ONNX}::test_an_empty_file_is_named",
    ),
    70: (
        f"{SERVER}::test_an_artifact_with_a_flipped_byte_is_not_served",
        f"{FITNESS}::test_bytes_that_were_changed_anywhere_or_cut_off_are_refused_by_their_hash",
    ),
    71: (
        f"{FITNESS}::test_another_version_is_refused_with_the_line_that_installs_the_right_one",
        f"{FITNESS}::test_a_plan_for_another_gpu_says_for_which_and_how_to_build_for_this_one",
        f"{FITNESS}::test_an_older_driver_than_that_of_the_build_is_refused",
    ),
    73: (
        f"{ONNX}::test_an_unknown_domain_is_named_with_its_node",
        f"{ONNX}::test_a_newer_opset_names_both_versions",
    ),
    74: (DRILLS, f"{SERVER}::test_an_artifact_that_is_wrong_on_this_machine_never_becomes_ready"),
    75: ("tests/data/test_postprocess.py::test_class_count_mismatch_names_both_numbers",),
    76: (
        DRILLS,
        f"{ROUTER}::test_a_request_whose_release_fails_is_answered_by_the_reference",
        f"{ROUTER}::test_after_enough_failures_the_release_is_not_asked_any_more",
    ),
    77: (DRILLS, f"{ROUTER}::test_nan_is_answered_by_the_reference_unless_the_client_sent_it"),
    78: (DRILLS, f"{ROUTER}::test_wrong_answers_are_found_by_comparison"),
    79: (DRILLS, f"{BREAKER}::test_a_slow_release_opens_it_and_a_machine_that_is_slow_for_both_does_not"),
    80: (
        f"{SERVER}::test_an_artifact_that_is_wrong_on_this_machine_never_becomes_ready",
        f"{STANDING}::test_a_candidate_that_is_wrong_on_this_machine_is_never_given_work",
    ),
    81: (
        f"{BREAKER}::test_after_the_cool_down_good_probes_close_it_one_at_a_time",
        f"{BREAKER}::test_a_release_that_fails_again_and_again_is_tried_ever_more_rarely_up_to_the_cap",
        f"{ROUTER}::test_probes_are_copies_that_no_client_sees_and_good_ones_bring_the_release_back",
    ),
    82: (f"{ROUTER}::test_when_the_reference_fails_too_the_answer_is_503_after_one_run_each",),
    83: (
        "tests/serve/test_release_watch.py::test_a_rollback_is_counted_by_its_reason_and_logged_with_it",
        "tests/serve/test_dashboard.py::test_alerts_a_rollback_and_why_it_is_not_ready_are_shown",
        "tests/serve/test_status.py::test_a_release_shows_its_breaker_and_the_latest_event_first",
        "tests/serve/protocol/test_metadata.py::test_statistics_are_whole_nanoseconds_and_tell_the_release",
    ),
    86: ("tests/serve/test_auth.py::test_no_repr_log_record_error_or_traceback_holds_a_key",),
}

NOT_HERE: dict[int, str] = {
    67: "no bundle is unpacked: a run is a folder, and its files are known by their hashes",
    72: "nothing is signed: an artifact is known by the hash in its run's ledger, and the run is trusted as a whole",
}
