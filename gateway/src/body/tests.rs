use pulsestream_shared::config::load;
use uuid::Uuid;

use super::*;

const NOW_MS: i64 = 1_795_194_569_018;

fn read_now(body: &str) -> Result<Draft, Problem> {
    let config = load(None, std::iter::empty(), &[]).unwrap().config.ingest;
    read(body.as_bytes(), Id::Given(EventId(Uuid::from_u128(1))), NOW_MS, &config)
}

fn body(replace: &str, with: &str) -> String {
    let good = format!(
        r#"{{"deviceId":"73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a","eventType":"temperature","value":21.5,"timestamp":{NOW_MS}}}"#
    );
    assert!(good.contains(replace), "{replace}");
    good.replace(replace, with)
}

fn faults(body: &str) -> Vec<String> {
    let problem = read_now(body).unwrap_err();
    assert_eq!(problem.code(), Code::ValidationFailed, "{body}");
    let json = format!("{problem:?}");
    json.match_indices("field: \"")
        .map(|(at, start)| json.split_at(at + start.len()).1.split('"').next().unwrap().to_owned())
        .collect()
}

#[test]
fn a_good_body_is_an_event_and_unknown_fields_are_ignored() {
    let draft = read_now(&body("}", r#","extra":{"deep":[1]},"metadata":{"a":1}}"#)).unwrap();
    assert_eq!(draft.event.value, 21.5);
    assert_eq!(draft.event.metadata.unwrap().as_json(), r#"{"a":1}"#);
    assert!(!draft.too_old);
}

#[test]
fn every_fault_of_every_field_is_reported_at_once() {
    let all = r#"{"deviceId":"x","eventType":"y","value":"21","timestamp":-1,"metadata":{"a":null,"b":[]}}"#;
    assert_eq!(
        faults(all),
        ["deviceId", "eventType", "value", "timestamp", "metadata.a", "metadata.b"]
    );
    assert_eq!(faults("{}"), ["deviceId", "eventType", "value", "timestamp"]);
    assert_eq!(faults("[]"), [""]);
}

#[test]
fn each_field_has_its_limits() {
    for (replace, with, field) in [
        ("73d7049a-", "", "deviceId"),
        ("temperature", "t", "eventType"),
        ("temperature", &"t".repeat(51), "eventType"),
        ("temperature", "t\\u0000t", "eventType"),
        ("21.5", "true", "value"),
        ("21.5", "null", "value"),
        (&NOW_MS.to_string(), "1795194569018.5", "timestamp"),
        (&NOW_MS.to_string(), "0", "timestamp"),
        (&NOW_MS.to_string(), "\"1795194569018\"", "timestamp"),
    ] {
        assert_eq!(faults(&body(replace, with)), [field], "{with}");
    }
}

#[test]
fn what_is_not_json_is_told_so() {
    let deep = "[".repeat(10_000);
    for wrong in ["", "{", "{\"value\":NaN}", &body("21.5", "1e400x"), &deep, "{\"a\":\"\u{1}\"}"] {
        assert_eq!(read_now(wrong).unwrap_err().code(), Code::InvalidJson, "{wrong:.40}");
    }
    let config = load(None, std::iter::empty(), &[]).unwrap().config.ingest;
    let utf8 =
        read(b"{\"eventType\":\"\xff\"}", Id::Given(EventId(Uuid::from_u128(1))), NOW_MS, &config);
    assert_eq!(utf8.unwrap_err().code(), Code::InvalidJson);
    // In a field that is ignored as well.
    let skipped = [body("}", ",\"more\":\"").as_bytes(), b"\xff\"}"].concat();
    let skipped = read(&skipped, Id::Given(EventId(Uuid::from_u128(1))), NOW_MS, &config);
    assert_eq!(skipped.unwrap_err().code(), Code::InvalidJson);
}

#[test]
fn the_clock_rules_hold_at_their_edges() {
    let at = |offset_ms: i64| body(&NOW_MS.to_string(), &(NOW_MS + offset_ms).to_string());
    assert!(!read_now(&at(300_000)).unwrap().too_old);
    assert_eq!(faults(&at(300_001)), ["timestamp"]);
    assert!(!read_now(&at(-300_000)).unwrap().too_old);
    // Too old alone is judged later, at the time of the first attempt.
    assert!(read_now(&at(-300_001)).unwrap().too_old);
    assert_eq!(faults(&at(-300_001).replace("21.5", "true")), ["value", "timestamp"]);
}
