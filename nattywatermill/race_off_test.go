//go:build !race

package nattywatermill_test

const raceDetector = false
