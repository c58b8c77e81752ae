//! Walls between the crates, checked on cargo's own dependency graph.
//!
//! Arrows point down: a crate may depend on crates of a lower layer only. On top of that some crates must be free of
//! certain things altogether, however deep they hide. `control` is the one case that is judged by its own dependencies
//! alone where HTTP is concerned: it takes plain documents from `nodeapi`, whose client speaks HTTP.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Finding, Tree};

/// Layer of each crate, lowest first. A new crate finds its place here or tidy refuses it.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("model", 0),
    ("mdata", 0),
    ("dns", 1),
    ("store", 1),
    ("host", 1),
    ("nodeapi", 1),
    ("cloudapi", 1),
    ("opsapi", 1),
    ("etcd", 2),
    ("flow", 2),
    ("control", 3),
    ("node", 3),
    ("headnode", 4),
    ("sim", 4),
    ("neso", 5),
    ("bench", 5),
    ("xtask", 6),
];

/// Crate, what must not be reachable from it, and why.
const NEVER: &[(&str, &[&str], &str)] = &[
    ("model", &["tokio", "hyper", "axum", "rusqlite", "nix", "libcontainer"], "nouns and rules do no IO and no async"),
    ("base", &["model", "store", "hyper", "axum"], "mechanisms know no noun"),
    ("store", &["model", "control", "hyper", "axum"], "the store knows no noun"),
    ("etcd", &["model", "flow", "control", "axum"], "an engine knows no noun"),
    ("flow", &["model", "control", "hyper", "axum"], "flows know no noun"),
    ("dns", &["model", "store", "flow", "control", "host", "hyper", "axum"], "a name server knows no cloud"),
    (
        "node",
        &["store", "flow", "control", "headnode", "cloudapi", "opsapi", "rusqlite", "axum"],
        "a node works without a control plane",
    ),
    (
        "control",
        &["cloudapi", "opsapi", "host", "node", "axum", "libcontainer"],
        "the brain never sees the public contract or a kernel",
    ),
    ("host", &["store", "flow", "control", "cloudapi", "hyper", "axum"], "the door to the kernel knows no cloud"),
    ("cloudapi", &["store", "flow", "control", "host", "axum"], "a contract is plain data"),
    ("nodeapi", &["store", "flow", "control", "host", "axum"], "a contract is plain data"),
    ("opsapi", &["store", "flow", "control", "host", "axum"], "a contract is plain data"),
    ("mdata", &["tokio", "serde_json", "clap"], "it runs inside guests and stays small"),
];

/// Crate, what its own manifest must not name, and why.
const NEVER_DIRECTLY: &[(&str, &[&str], &str)] = &[(
    "control",
    &["http", "hyper", "hyper-util", "axum", "tower", "rusqlite"],
    "the brain never sees HTTP or an engine",
)];

/// Cargo's resolved graph, development dependencies left out.
pub(super) struct Graph {
    members: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Reads the output of `cargo metadata`.
    pub(super) fn parse(metadata: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(metadata).map_err(|error| format!("cannot read cargo's metadata: {error}"))?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> =
            list(&value["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
        let name_of = |id: &Value| names.get(&text(id)).cloned().unwrap_or_default();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&value["resolve"]["nodes"]) {
            let to = edges.entry(name_of(&node["id"])).or_default();
            for dependency in list(&node["deps"]) {
                let ships = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].as_str() != Some("dev"));
                if ships {
                    to.insert(name_of(&dependency["pkg"]));
                }
            }
        }
        let members = list(&value["workspace_members"]).iter().map(name_of).collect();
        Ok(Self { members, edges })
    }

    fn direct(&self, from: &str) -> impl Iterator<Item = &str> {
        self.edges.get(from).into_iter().flatten().map(String::as_str)
    }

    /// The shortest way from one crate to another, both ends included.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut came: BTreeMap<&str, &str> = BTreeMap::new();
        let mut edge = vec![from];
        while !edge.is_empty() {
            let mut next = Vec::new();
            for at in edge {
                for step in self.direct(at) {
                    if step == from || came.contains_key(step) {
                        continue;
                    }
                    came.insert(step, at);
                    if step == to {
                        let mut way = vec![to.to_owned()];
                        let mut back = to;
                        while back != from {
                            back = came[back];
                            way.push(back.to_owned());
                        }
                        way.reverse();
                        return Some(way);
                    }
                    next.push(step);
                }
            }
            edge = next;
        }
        None
    }
}

/// Layers and walls.
pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut findings = Vec::new();
    for member in &graph.members {
        let Some(layer) = layers.get(member.as_str()) else {
            findings.push(Finding::new(member, "has no layer; give it one in xtask/src/tidy/walls.rs"));
            continue;
        };
        for dependency in graph.direct(member) {
            if let Some(below) = layers.get(dependency)
                && below >= layer
            {
                findings.push(Finding::new(member, format!("depends on `{dependency}`, which is not below it")));
            }
        }
    }
    for (from, banned, why) in NEVER {
        for to in *banned {
            if let Some(way) = graph.way(from, to) {
                findings.push(Finding::new(*from, format!("reaches `{to}` ({}): {why}", way.join(" → "))));
            }
        }
    }
    for (from, banned, why) in NEVER_DIRECTLY {
        for to in graph.direct(from).filter(|to| banned.contains(to)) {
            findings.push(Finding::new(*from, format!("names `{to}`: {why}")));
        }
    }
    findings
}

/// Every crate takes the workspace's lints, so that `unsafe` is forbidden; `host` repeats them with that one changed.
pub(super) fn check_manifests(tree: &Tree) -> Vec<Finding> {
    tree.iter()
        .filter(|(name, _)| {
            name.ends_with("/Cargo.toml") && (name.starts_with("crates/") || name.starts_with("xtask/"))
        })
        .filter(|(name, text)| *name != "crates/host/Cargo.toml" && !text.contains("[lints]\nworkspace = true"))
        .map(|(name, _)| Finding::new(name, "does not take the workspace's lints (`[lints]` with `workspace = true`)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(members: &[&str], edges: &[(&str, &[&str])]) -> Graph {
        Graph {
            members: members.iter().map(|name| (*name).to_owned()).collect(),
            edges: edges
                .iter()
                .map(|(from, to)| ((*from).to_owned(), to.iter().map(|name| (*name).to_owned()).collect()))
                .collect(),
        }
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let found = check(&graph(&["base", "store"], &[("base", &["store"])]));
        assert!(found.iter().any(|finding| finding.message.contains("not below")), "{found:?}");
        assert_eq!(check(&graph(&["base", "store"], &[("store", &["base"])])), []);
    }

    #[test]
    fn a_wall_is_found_broken_however_deep() {
        let found = check(&graph(&["model"], &[("model", &["a"]), ("a", &["b", "model"]), ("b", &["tokio"])]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("model → a → b → tokio"), "{found:?}");
    }

    #[test]
    fn control_may_reach_http_through_the_nodes_contract_but_not_name_it() {
        let through = graph(&["control", "nodeapi"], &[("control", &["nodeapi"]), ("nodeapi", &["hyper"])]);
        assert_eq!(check(&through), []);
        assert_eq!(check(&graph(&["control"], &[("control", &["hyper"])])).len(), 1);
    }

    #[test]
    fn a_crate_without_a_layer_is_refused() {
        assert_eq!(check(&graph(&["novelty"], &[])).len(), 1);
    }

    #[test]
    fn cargos_metadata_is_read_without_development_dependencies() {
        let metadata = r#"{
            "packages": [{"id": "1", "name": "model"}, {"id": "2", "name": "tokio"}, {"id": "3", "name": "serde"}],
            "workspace_members": ["1"],
            "resolve": {"nodes": [{"id": "1", "deps": [
                {"pkg": "2", "dep_kinds": [{"kind": "dev"}]}, {"pkg": "3", "dep_kinds": [{"kind": null}]}]}]}}"#;
        let graph = Graph::parse(metadata).expect("it is well formed");
        assert_eq!(graph.direct("model").collect::<Vec<_>>(), ["serde"]);
        assert!(Graph::parse("{").is_err());
    }

    #[test]
    fn a_manifest_without_the_lints_is_found() {
        let tree = super::super::tree([
            ("crates/a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
            ("crates/b/Cargo.toml", "[package]\n"),
        ]);
        let found = check_manifests(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "crates/b/Cargo.toml");
    }
}
