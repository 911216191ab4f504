"""Every row of docs/data.md has a test that shows what it says."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "data.md"
SHOWN = {  # how a row begins -> tests
    "`.csv`": ["test_what_is_read_is_what_was_written", "test_rows_that_slide_are_refused_with_the_first_line", "test_quotation_marks_that_swallow_lines_are_refused"],
    "`.tsv`": ["test_what_is_read_is_what_was_written", "test_quotation_marks_that_swallow_lines_are_refused"],
    "`.json`, `.jsonl`, `.ndjson`": ["test_what_is_read_is_what_was_written", "test_json_that_could_be_read_in_two_ways"],
    "`.parquet`": ["test_what_is_read_is_what_was_written", "test_labels_as_they_are_written"],
    "folder of images": ["test_every_image_of_a_folder_is_read", "test_images_without_a_place_are_named", "test_folders_are_read_whole_or_refused"],
    "folder of images with `metadata.csv`": ["test_a_folder_with_a_list_of_its_images"],
    "folder of tables": ["test_tables_of_a_folder_are_splits_by_name"],
    "`lm_eval:TASK` of the lm-evaluation-harness (multiple choice)": ["test_a_task_is_its_texts_choices_and_right_answers", "test_rows_of_other_choices_are_left_out_and_counted", "test_what_cannot_be_ranked_is_refused"],
    "`clip_benchmark:SET` of LAION's CLIP benchmark": ["test_a_set_is_its_images_classes_and_prompts", "test_what_is_no_set_of_classification_is_refused"],
    "what `save_to_disk` wrote, `demo:NAME`, a name of the Hub": ["test_what_save_to_disk_wrote"],
    "8 bits, palettes, CMYK, grey": ["test_depths_are_scaled_by_the_written_rule"],
    "16 bits": ["test_depths_are_scaled_by_the_written_rule"],
    "32-bit integers": ["test_depths_are_scaled_by_the_written_rule"],
    "floating-point": ["test_depths_are_scaled_by_the_written_rule"],
    "transparent": ["test_transparency_goes_onto_white", "test_transparency_of_16_bits"],
    "TIFF of 12 bits, of 8 or 16 bits with a sign, or of more than 8 bits with zero for white": ["test_what_a_tiff_says_of_its_values_is_heeded_or_refused"],
    "cut off, broken, or of more than 179 megapixels": ["test_what_cannot_be_read_is_named_before_any_work", "test_what_is_cut_off_is_seen_by_check", "test_broken_files_are_named_by_check_or_when_they_are_decoded"],
    "`missing`": ["test_what_is_missing_is_named_or_left_out"],
    "`missing_words`": ["test_words_that_others_take_for_missing_are_words", "test_labels_as_they_are_written"],
    "`quotes`": ["test_what_is_read_is_what_was_written", "test_quotation_marks_that_swallow_lines_are_refused"],
    "`unknown_classes`": ["test_labels_are_found_by_name"],
    "`duplicates`": ["test_inputs_in_two_splits"],
    "`stratified`": ["test_shares_strata_and_content"],
    "`split_by`": ["test_shares_strata_and_content"],
    "`class_count`": ["test_classes_are_counted_and_their_underscores_may_be_spaces"],
    "`underscores`": ["test_classes_are_counted_and_their_underscores_may_be_spaces"],
    "`validation_from`": ["test_validation_data_come_from_test_or_train_although_there_are_some"],
    "`validation_most`": ["test_validation_data_come_from_test_or_train_although_there_are_some"],
    "`validation_share`, `test_share`": ["test_shares_strata_and_content"],
}  # fmt: skip


def test_every_row_of_the_page_has_a_test():
    heads = {"data", "image", "setting"}
    rows = {line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")}
    assert rows - heads == set(SHOWN)
    written = "".join(p.read_text() for p in [*HERE.glob("test_*.py"), HERE.parent / "test_tasks.py"])
    there = set(re.findall(r"^def (test_\w+)", written, re.M))
    assert all(set(tests) <= there for tests in SHOWN.values())
