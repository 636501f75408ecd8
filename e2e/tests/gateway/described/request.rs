//! Requests made of the document's examples.

use pulsestream_e2e::client::PATIENCE;
use pulsestream_shared::clock;
use pulsestream_shared::openapi::example;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use uuid::Uuid;

/// One operation of the document.
pub(crate) struct Operation<'d> {
    pub(crate) path: &'d str,
    pub(crate) method: &'d str,
    pub(crate) id: &'d str,
    pub(crate) spec: &'d Value,
}

impl<'d> Operation<'d> {
    pub(crate) fn all(document: &'d Value) -> Vec<Self> {
        let paths = document["paths"].as_object().expect("paths");
        let operations = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").iter();
            methods.map(move |(method, spec)| {
                let id = spec["operationId"].as_str().expect("a name");
                Self { path, method, id, spec }
            })
        });
        operations.collect()
    }

    /// Whether it takes a body.
    pub(crate) fn sends(&self) -> bool {
        self.spec.get("requestBody").is_some()
    }
}

/// What is sent. Made of examples; a test changes what it is about.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: reqwest::Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Request {
    /// With the required parameters and the body of the example by that name, else of any. It is about this
    /// event of this device, and happens now.
    pub(crate) fn of(operation: &Operation<'_>, name: &str, device: Uuid, event: Uuid) -> Self {
        let now_ms = clock::unix_ms();
        let fresh = |text: String| {
            let shifted = [-60_000, 0, 60_000].into_iter().fold(text, |text, offset_ms| {
                let told = (example::TIMESTAMP_MS + offset_ms).to_string();
                text.replace(&told, &(now_ms + offset_ms).to_string())
            });
            shifted
                .replace(&example::DEVICE_ID.to_string(), &device.to_string())
                .replace(&example::EVENT_ID.to_string(), &event.to_string())
        };
        let mut request = Self {
            method: operation.method.to_uppercase().parse().expect("a method"),
            path: operation.path.to_owned(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: String::new(),
        };
        for parameter in operation.spec["parameters"].as_array().into_iter().flatten() {
            let (place, name) = (&parameter["in"], parameter["name"].as_str().expect("a name"));
            let value = fresh(plain(&parameter["example"]));
            match place.as_str() {
                Some("path") => request.path = request.path.replace(&format!("{{{name}}}"), &value),
                Some("query") if parameter["required"] == true => {
                    request.query.push((name.to_owned(), value));
                }
                Some("header") => request.set(name, &value),
                _ => {}
            }
        }
        if operation.sends() {
            let examples =
                &operation.spec["requestBody"]["content"]["application/json"]["examples"];
            let any = examples.as_object().and_then(|all| all.values().next());
            let example = examples.get(name).or(any).expect("an example");
            request.set("content-type", "application/json");
            request.body = fresh(example["value"].to_string());
        }
        request
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let name: HeaderName = name.parse().expect("a name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a value"));
    }

    pub(crate) async fn send_owned(self, url: String) -> Got {
        self.send(&url).await
    }

    pub(crate) async fn send(self, url: &str) -> Got {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let query: Vec<_> =
            self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut target = format!("{url}{}", self.path);
        if !query.is_empty() {
            target = format!("{target}?{}", query.join("&"));
        }
        let sent = http.request(self.method, target).headers(self.headers).body(self.body).send();
        let answer = sent.await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Got { status, headers, text: answer.text().await.expect("a body") }
    }
}

/// A string without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
