//! `docs/asyncapi.json` against the words of this crate. That frames look as it says, and its examples come
//! about, is tried on a running pipeline (`e2e/tests/gateway/frames`).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::close::Close;
use crate::resume::Verdict;
use crate::snapshot::Without;
use crate::subscription::GapReason;
use crate::{commands, frames};

fn document() -> Value {
    serde_json::from_str(include_str!("../../docs/asyncapi.json")).unwrap()
}

/// Names of a channel's messages.
fn messages(channel: &str) -> BTreeSet<String> {
    let document = document();
    document["channels"][channel]["messages"].as_object().unwrap().keys().cloned().collect()
}

fn description(pointer: &str) -> String {
    document().pointer(pointer).and_then(|at| at["description"].as_str()).unwrap().to_owned()
}

#[test]
fn every_frame_and_every_command_is_a_message_and_no_other_is() {
    let frames = frames::Kind::ALL.map(frames::Kind::word);
    let commands = commands::Kind::ALL.map(commands::Kind::word);
    let words: BTreeSet<_> = frames.iter().chain(&commands).map(ToString::to_string).collect();
    assert_eq!(messages("framed"), words);
}

#[test]
fn every_reason_is_named() {
    let lost = description("/components/schemas/LostReason");
    for reason in Verdict::ALL.into_iter().filter_map(Verdict::reason) {
        assert!(lost.contains(&format!("`{reason}`")), "{reason}");
    }
    let gap = description("/components/schemas/GapReason");
    for reason in GapReason::ALL.map(GapReason::word) {
        assert!(gap.contains(&format!("`{reason}`")), "{reason}");
    }
    let without = description("/components/schemas/SnapshotReason");
    for reason in Without::ALL.map(Without::word) {
        assert!(without.contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn every_close_code_is_told_of_with_its_text() {
    let framed = description("/channels/framed");
    for (code, text) in Close::ALL.map(Close::frame) {
        assert!(framed.contains(&format!("- `{code}` {text}: ")), "{code} {text}");
    }
}
