use std::io::Write as _;

use super::*;

fn load_with(variables: &[(&str, &str)]) -> Result<Loaded, Faults> {
    let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    load(None, environment, &[])
}

fn faults_of(variables: &[(&str, &str)]) -> Vec<String> {
    let faults = load_with(variables).unwrap_err().0;
    faults.iter().map(|fault| format!("{}: {}", fault.setting, fault.message)).collect()
}

#[test]
fn the_defaults_are_a_valid_configuration() {
    let loaded = load_with(&[]).unwrap();
    assert_eq!(loaded.config.server.port, 3000);
    assert_eq!(loaded.config.ingest.clock_drift, Duration::from_secs(300));
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[server]\nport = 1\nconsumer_port = 2\nbroadcaster_port = 3").unwrap();
    let environment = [("PORT", "11"), ("PULSESTREAM__SERVER__CONSUMER_PORT", "12")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flags = [("server.port", "21".to_owned())];
    let loaded = load(Some(file.path()), environment.into_iter(), &flags).unwrap();
    let server = &loaded.config.server;
    assert_eq!((server.port, server.consumer_port, server.broadcaster_port), (21, 12, 3));
    assert_eq!(loaded.source("server.port"), Source::Flag);
}

#[test]
fn an_unknown_setting_is_refused_with_the_near_one() {
    let faults = faults_of(&[("PULSESTREAM__SERVER__PROT", "1")]);
    assert_eq!(faults, ["PULSESTREAM__SERVER__PROT: unknown setting, did you mean server.port?"]);
}

#[test]
fn three_faults_are_reported_together_by_the_names_they_were_set_by() {
    let faults = faults_of(&[
        ("MAX_EVENT_AGE", "soon"),
        ("PORT", "eighty"),
        ("PULSESTREAM__LOG__RETENTON", "9d"),
    ]);
    assert_eq!(
        faults,
        [
            "PORT: \"eighty\" is not a whole integer",
            "PULSESTREAM__LOG__RETENTON: unknown setting, did you mean log.retention?",
            "MAX_EVENT_AGE: \"soon\" is not a duration: write a number and ms, s, m, h or d, such as \"30s\"",
        ]
    );
}

#[test]
fn values_out_of_range_and_contradictions_are_refused() {
    let faults = faults_of(&[
        ("PULSESTREAM__LOG__PARTITIONS", "0"),
        ("PULSESTREAM__LOG__APPEND_TIMEOUT", "9s"),
        ("MAX_EVENT_AGE", "13d"),
    ]);
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults.iter().any(|fault| fault.starts_with("PULSESTREAM__LOG__PARTITIONS: is 1 to")));
    assert!(faults.iter().any(|fault| fault.starts_with("MAX_EVENT_AGE: must be at most")));
}

#[test]
fn a_secret_can_come_from_a_file_and_is_not_shown() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "postgres://me:hush@db/x").unwrap();
    let path = file.path().to_str().unwrap();
    let loaded = load_with(&[("DATABASE_URL_FILE", path)]).unwrap();
    assert_eq!(loaded.config.store.database_url.expose(), "postgres://me:hush@db/x");
    assert!(loaded.show().contains("me:***@db/x\"  # DATABASE_URL_FILE"), "{}", loaded.show());
    assert!(!format!("{:?}", loaded.config).contains("hush"));
}

#[test]
fn variables_of_other_programs_are_left_alone() {
    assert!(load_with(&[("HOME", "/root"), ("SOME_FILE", "/nowhere"), ("PORTER", "x")]).is_ok());
}

#[test]
fn traces_go_to_a_collector_named_as_other_programs_name_it() {
    let loaded = load_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,a=b"),
    ]);
    let telemetry = loaded.unwrap().config.telemetry;
    assert_eq!(telemetry.otlp_endpoint, "http://127.0.0.1:4318");
    assert_eq!(telemetry.resource_attributes, ["deployment.environment.name=test", "a=b"]);
    let faults = faults_of(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector"),
        ("OTEL_RESOURCE_ATTRIBUTES", "b"),
    ]);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: must be http://"), "{faults:?}");
}

#[test]
fn a_list_in_a_variable_is_read_between_commas() {
    let of = |text: &str| {
        let loaded = load_with(&[("PULSESTREAM__SERVER__CORS_ORIGINS", text)]);
        loaded.expect("valid").config.server.cors_origins
    };
    let two = ["https://a.example", "https://b.example:8443"];
    assert_eq!(of("https://a.example, https://b.example:8443"), two);
    assert!(of("").is_empty());
}

#[test]
fn the_gateways_url_is_an_origin() {
    let of = |text: &str| load_with(&[("PULSESTREAM__LIVE__GATEWAY_URL", text)]);
    for text in ["", "http://127.0.0.1:3000", "https://in.example"] {
        assert_eq!(of(text).expect("valid").config.live.gateway_url, text);
    }
    for text in [
        "in.example",
        "https://in.example/",
        "https://in.example/x",
        "ftp://in.example",
        "https://a b",
    ] {
        let faults = of(text).unwrap_err().to_string();
        assert!(faults.contains("GATEWAY_URL: must be http"), "{text}: {faults}");
    }
}
