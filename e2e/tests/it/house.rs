//! The house keeps its walls: who may depend on whom, and where an engine may be named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// What each member may depend on, besides crates from outside.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("pulsestream-shared", &[]),
    ("pulsestream-gateway", &["pulsestream-shared"]),
    ("pulsestream-consumer", &["pulsestream-shared"]),
    ("pulsestream-broadcaster", &["pulsestream-shared"]),
    (
        "pulsestream",
        &[
            "pulsestream-shared",
            "pulsestream-gateway",
            "pulsestream-consumer",
            "pulsestream-broadcaster",
        ],
    ),
    // Load comes from outside: a generator that shares our code would share our mistakes.
    ("pulsestream-loadgen", &[]),
    (
        "pulsestream-e2e",
        &[
            "pulsestream-shared",
            "pulsestream-gateway",
            "pulsestream-consumer",
            "pulsestream-broadcaster",
            "pulsestream",
            "pulsestream-loadgen",
        ],
    ),
];

const ENGINES: [&str; 3] = ["rdkafka", "redis", "sqlx"];

/// The rooms of the engines, and the one place that chooses among them.
const ROOMS: [&str; 5] = [
    "shared/src/log/",
    "shared/src/store/",
    "shared/src/cache/",
    "shared/src/bus/",
    "shared/build.rs",
];

fn metadata() -> Metadata {
    MetadataCommand::new().no_deps().exec().expect("cargo metadata")
}

#[test]
fn members_depend_only_on_what_the_house_allows() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    assert_eq!(metadata.packages.len(), allowed.len(), "a member without a rule");
    for package in &metadata.packages {
        let may_use = allowed[package.name.as_str()];
        let members = package.dependencies.iter().filter(|d| allowed.contains_key(d.name.as_str()));
        for dependency in members.filter(|d| d.kind == DependencyKind::Normal) {
            assert!(
                may_use.contains(&dependency.name.as_str()),
                "{} must not depend on {}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn only_shared_depends_on_an_engine() {
    for package in metadata().packages {
        let engines = package.dependencies.iter().filter(|d| ENGINES.contains(&d.name.as_str()));
        for engine in engines {
            assert_eq!(package.name.as_str(), "pulsestream-shared", "names {}", engine.name);
        }
    }
}

#[test]
fn an_engine_is_named_only_in_its_room() {
    let root = metadata().workspace_root.into_std_path_buf();
    let mut seen = 0;
    for file in sources(&root) {
        let name = file.strip_prefix(&root).expect("below the root").display().to_string();
        seen += 1;
        if ROOMS.iter().any(|room| name.starts_with(room)) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        for (number, line) in text.lines().enumerate() {
            for engine in ENGINES {
                let path = line.replace(&format!("::{engine}::"), "");
                let named = path.contains(&format!("use {engine}"))
                    || path.match_indices(&format!("{engine}::")).any(|(at, _)| is_word(&path, at));
                assert!(!named, "{name}:{} names {engine}: {line}", number + 1);
            }
        }
    }
    assert!(seen > 50, "the sources were not found");
}

/// A name of ours may end as an engine's does: `own_redis::`.
fn is_word(line: &str, at: usize) -> bool {
    let before = line.get(..at).and_then(|before| before.chars().next_back());
    !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    let root = metadata().workspace_root.into_std_path_buf();
    for file in sources(&root) {
        let lines = fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= 500, "{}: {lines} lines", file.display());
    }
}

#[test]
fn a_link_of_a_document_leads_to_a_file() {
    let root = metadata().workspace_root.into_std_path_buf();
    let mut documents = files(&["docs", "clients/js", "migrations"].map(|at| root.join(at)), "md");
    documents.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root.join(name)));
    let mut seen = 0;
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        let folder = document.parent().expect("a folder");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains(':') {
                seen += 1;
                assert!(folder.join(target).exists(), "{}: {target}", document.display());
            }
        }
    }
    assert!(seen > 100, "the links were not found");
}

/// Every Rust file of the members.
fn sources(root: &Path) -> Vec<PathBuf> {
    let members = ["shared", "gateway", "consumer", "broadcaster", "standalone", "loadgen", "e2e"];
    files(&members.map(|member| root.join(member)), "rs")
}

/// Every file below these folders whose name ends so; what npm installs is not ours.
fn files(folders: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    let mut folders = folders.to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files
}
