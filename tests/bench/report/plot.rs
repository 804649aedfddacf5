//! A suite's ratios as a plot: a dot at the median, a line from the smallest to the largest, a bar at the aim.

use std::path::Path;

use plotters::prelude::*;
use tde_tests::figures::{Figure, Suite};

const WIDTH: u32 = 900;
const LINE: u32 = 22;
const LABELS: u32 = 430;

/// Draws `suite` into an SVG file.
pub(crate) fn draw(suite: &Suite, file: &Path) {
    let rows: Vec<(String, &Figure)> = suite
        .tables
        .iter()
        .flat_map(|table| {
            let subject = &table.subject;
            table.figures.iter().map(move |figure| (format!("{subject}: {}", figure.name), figure))
        })
        .collect();
    let height = LINE * u32::try_from(rows.len()).unwrap() + 90;
    let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let values = rows.iter().flat_map(|(_, f)| [f.ratio.min, f.ratio.max].into_iter().chain(f.aim));
    let (low, high) = values.fold((0.8_f64, 1.25_f64), |(low, high), v| (low.min(v), high.max(v)));
    let lines = f64::from(u32::try_from(rows.len()).unwrap());
    let mut chart = ChartBuilder::on(&root)
        .caption(&suite.title, ("sans-serif", 18))
        .margin(10)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 40)
        .build_cartesian_2d(((low * 0.9)..(high * 1.1)).log_scale(), 0.0..lines)
        .unwrap();
    chart.configure_mesh().disable_y_mesh().y_labels(0).x_desc("ratio, logarithmic").draw().unwrap();
    let one = [(1.0, 0.0), (1.0, lines)];
    chart.draw_series(LineSeries::new(one, BLACK.mix(0.5))).unwrap();
    for (index, (name, figure)) in rows.iter().enumerate() {
        let y = lines - f64::from(u32::try_from(index).unwrap()) - 0.5;
        let spread = [(figure.ratio.min, y), (figure.ratio.max, y)];
        chart.draw_series(LineSeries::new(spread, BLUE.stroke_width(2))).unwrap();
        chart.draw_series([Circle::new((figure.ratio.median, y), 4, BLUE.filled())]).unwrap();
        if let Some(aim) = figure.aim {
            let bar = [(aim, y - 0.35), (aim, y + 0.35)];
            chart.draw_series(LineSeries::new(bar, RED.stroke_width(2))).unwrap();
        }
        // Labels of the chart's own axis cannot stand beside the middle of a line.
        let (_, pixel) = chart.backend_coord(&(low, y));
        let style = ("sans-serif", 13).into_font().color(&BLACK);
        root.draw(&Text::new(name.clone(), (12, pixel - 7), style)).unwrap();
    }
    root.present().unwrap();
}
