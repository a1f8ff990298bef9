package faulttest_test

import (
	"testing"

	"github.com/natty-go/natty/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
