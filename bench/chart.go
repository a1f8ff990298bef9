package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"runtime"
	"slices"
)

//go:embed chart.svg.tmpl
var chartTemplate string

// The chart's lengths, in pixels. The axis runs from 0 to axisEnd times nats.go.
const (
	axisLeft   = 150
	axisWidth  = 400
	axisEnd    = 2.0
	lineHeight = 26
	headHeight = 62
)

// chart is what the template draws.
type chart struct {
	Title  string
	Height int
	Ticks  []tick
	Rows   []bar
}

type tick struct {
	X     float64
	Label string
	One   bool // as fast as nats.go
}

// bar is a row of the table: the middle half of its ratios, and their median.
type bar struct {
	Name, Figures  string
	Y              int
	Low, Width, At float64
}

// drawChart writes the rows as a picture. A row whose target does not fit on the axis is
// left out: it compares 64 handlers with one.
func drawChart(out io.Writer, results []*result, rounds int) error {
	results = slices.DeleteFunc(slices.Clone(results), func(r *result) bool { return r.row.target > axisEnd })
	c := chart{
		Title: fmt.Sprintf("natty's throughput divided by nats.go's: median and middle half of %d rounds, %d CPUs",
			rounds, runtime.GOMAXPROCS(0)),
		Height: headHeight + lineHeight*len(results) + 8,
	}
	for _, at := range []float64{0, 0.5, 1, 1.5, axisEnd} {
		c.Ticks = append(c.Ticks, tick{X: onAxis(at), Label: fmt.Sprintf("%g", at), One: at == 1})
	}
	for i, r := range results {
		c.Rows = append(c.Rows, bar{
			Name: r.row.name, Y: headHeight + lineHeight*i,
			Low: onAxis(r.low), Width: max(onAxis(r.high)-onAxis(r.low), 2), At: onAxis(r.ratio),
			Figures: fmt.Sprintf("%.2f   %s/s", r.ratio, thousands(r.natty.perSecond)),
		})
	}
	return template.Must(template.New("chart").Parse(chartTemplate)).Execute(out, c)
}

// onAxis returns where a ratio stands.
func onAxis(ratio float64) float64 { return axisLeft + min(ratio, axisEnd)/axisEnd*axisWidth }

// thousands writes a number as people read it: 12,300.
func thousands(n float64) string {
	if n < 1000 {
		return fmt.Sprintf("%.0f", n)
	}
	digits := fmt.Sprintf("%.0f", n/100) // its last two digits are noise
	whole := digits[:len(digits)-1]
	rest := digits[len(digits)-1:] + "00"
	if len(whole) > 3 {
		return whole[:len(whole)-3] + "," + whole[len(whole)-3:] + "," + rest
	}
	return whole + "," + rest
}
