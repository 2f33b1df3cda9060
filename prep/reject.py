"""Why a record was not packed: one name a reason, the same in code, ledger, manifest and docs/records.md."""

from collections.abc import Mapping


class Reject(Exception):
    """This record cannot be used. Becomes a row of rejects.parquet; never reaches the user as an error."""

    def __init__(self, reason: str, message: str, place: str = "") -> None:
        super().__init__(reason, message, place)  # what pickle calls again in the process that reads the result
        self.reason = reason
        self.message = message
        self.place = place
        """Path inside the record, such as messages[0].content[1]."""


REASONS: Mapping[str, str] = {
    # the line
    "not_utf8": "the line is not UTF-8",
    "invalid_json": "the line is not one JSON value: truncated, malformed, or two on one line",
    "invalid_number": "NaN, Infinity, or an integer beyond Python's digit limit",
    "nested_too_deep": "the JSON is nested beyond the parser's depth",
    "duplicate_key": "an object has the same key twice",
    "lone_surrogate": "half of a UTF-16 surrogate pair: no text can hold it",
    "unreadable_row": "a row of a table cannot be converted",
    "cell_count": "a row of a CSV or TSV file has more or fewer cells than the first line",
    "not_object": "the record is not a JSON object",
    # messages
    "missing_messages": "no `messages`, or what stands in their place in the form of the source",
    "messages_not_list": "`messages` is not a list",
    "empty_messages": "`messages` is empty",
    "message_not_object": "a message is not an object",
    "missing_role": "a message has no `role`",
    "unknown_role": "a role other than system, user, assistant, tool, that no setting `roles` names",
    "missing_content": "a message has no `content`",
    "null_content": "`content` is null",
    "bad_content_type": "`content` is neither a string nor a list of parts",
    "empty_content": "`content` is an empty list",
    "bad_weight": "a `weight` is no number, or neither 0 nor from 1e-12 to 1e12",
    "conflicting_weights": "flags of a turn say both that it is learned and that it is not, or two weights differ",
    "bad_reasoning": "reasoning that is no string, stands twice with a difference, or not before the answer",
    "bad_tools": "`tools` is not a list of functions with names",
    "bad_tool_call": "a tool call is not an object with the name of a function",
    "bad_tool_arguments": "the arguments of a tool call are not a JSON object, nor the text of one",
    "bad_template_option": "`chat_template_kwargs` is no object, or has a keyword that the template does not read",
    "preference_data": "answers to prefer or to avoid, such as `chosen` and `rejected`: only answers to learn fit",
    "no_assistant": "no assistant turn: nothing to learn from",
    "missing_group": "`eval_by` names a column that the record lacks, so that nobody knows whether to hold it out",
    # documents
    "bad_text": "the text of a document is no string, or no list of strings",
    "empty_text": "the text to learn from is empty",
    # parts
    "part_not_object": "a part is not an object",
    "part_missing_field": "a part lacks the key that its type needs",
    "unknown_part_type": "a part's type is not known",
    "bad_part": "a part has an unknown key, or a value of a wrong type",
    "bad_range": "no frames or samples between the two times of a clip, or more frames asked for than there are",
    "image_in_assistant": "an image, video or sound in an assistant turn: the model reads those, it writes text",
    "unread_media": "a column or key names pictures, videos or sounds, and no part of the record takes them",
    "bad_box": "a box or point is malformed, turned, outside its picture, or for a picture of another size",
    # transforms
    "missing_column": "a transform reads a column that the record lacks, or that holds no text",
    "transform_error": "a transform cannot change the record, or a function of the user failed",
    "transform_dropped": "a function of the user returned no record",
    # images
    "missing_file": "no such file under the media roots",
    "not_a_file": "the path is a folder, a device or a pipe",
    "empty_file": "an image, video or sound of 0 bytes",
    "unreadable_file": "the file exists and cannot be read",
    "file_too_large": "more bytes than an image may have",
    "path_outside_root": "the path leaves the media roots, after resolving .. and links",
    "absolute_path": "an absolute path or file: URL outside the media roots",
    "remote_url": "an image on the network while that is not allowed, or at an address that is not public",
    "changed_image": "an image on the network is another than in the earlier build that `pinned_images` names",
    "fetch_failed": "an image on the network did not come: an error, a wrong type, or too slow",
    "bad_data_uri": "a data: URI or base64 that is malformed or empty, or a data: URI of another type",
    "not_an_image": "the bytes begin like no known image format",
    "unsupported_format": "a format that is known and cannot be decoded, such as SVG or WMV, or HEIC without an extra",
    "decode_error": "the image, video or sound is truncated or damaged",
    "too_many_pixels": "more pixels than max_image_pixels, by the header of the image or a frame of the video",
    "aspect_ratio": "the longer side is more than 200 times the shorter one",
    # videos
    "not_a_video": "the bytes begin like no known video file: text, a playlist, a picture",
    "no_video_stream": "a file without a video in it, such as a sound",
    "no_frames": "a video without a single frame",
    "media_timeout": "a video or sound was not decoded within media_timeout",
    "media_memory": "a video or sound needs more memory to decode than it may have",
    "media_crash": "the library that decodes ended its process over the file",
    # sounds
    "not_a_sound": "the bytes begin like no known sound or video file: text, a playlist, a picture, samples alone",
    "no_audio_stream": "a file without a sound in it, such as a video without one",
    "empty_audio": "a sound without a single sample",
    "non_finite_samples": "a sound with a sample that is NaN or infinite",
    "audio_too_long": "a sound is longer than the model hears, and audio_too_long is not cut",
    "audio_too_short": "a sound is so short that it gives the model no token",
    # the record against the model
    "images_unsupported": "the record has images, the model reads none",
    "videos_unsupported": "the record has a video, the model reads none",
    "audio_unsupported": "the record has a sound, the model hears none",
    "count_mismatch": "the number of bare parts or tags is not the number of media in the record's column",
    "tools_unsupported": "the record has tools, calls or results, the chat template has no place for them",
    "template_error": "the chat template refuses the record",
    "template_changes_record": "the chat template drops, adds or moves a turn, an image, or text to learn from",
    "reasoning_dropped": "the chat template leaves out the reasoning of a turn to learn from",
    "no_target_tokens": "the record or every assistant turn has weight 0: nothing to learn from",
    "record_memory": "the record is too large for the memory that the setting `memory` leaves for one",
    "process_died": "two processes died with the record: memory ran out, or a library crashed",
    "too_long": "more tokens than a pack holds",
    "too_many_patches": "more vision patches, or positions of sounds, than a pack holds",
}
