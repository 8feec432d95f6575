//! `/help` and the home page.

use super::ENDPOINTS;
use axum::response::Html;
use std::fmt::Write;

/// Every command with a line of help.
pub(super) fn text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for endpoint in ENDPOINTS {
        // Writing to a string cannot fail, here and below.
        let post = if endpoint.mutates { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", endpoint.path, endpoint.help);
    }
    out
}

/// A page with a link, or a button where the command changes something.
pub(super) fn home() -> Html<String> {
    let mut rows = String::new();
    for endpoint in ENDPOINTS {
        let (path, help) = (endpoint.path, endpoint.help);
        let command = if endpoint.mutates {
            format!("<form action=\"{path}\" method=\"post\"><button>{path}</button></form>")
        } else {
            format!("<a href=\"{path}\">{path}</a>")
        };
        let _ = writeln!(rows, "<tr><td>{command}</td><td>{help}</td></tr>");
    }
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Lateen proxy admin</title>\
         <style>body{{font:16px system-ui;margin:2rem}}td{{padding:.2rem 1rem .2rem 0}}form{{margin:0}}\
         </style></head><body><h1>Lateen proxy admin</h1><table>{rows}</table></body></html>"
    ))
}
