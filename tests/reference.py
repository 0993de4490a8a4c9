"""The method in float64 NumPy, one formula after another, straight from the paper.

Nothing here is clever about cancellation, poles or speed, and nothing imports
keras_imm: the tests of the library compare against this.
"""

import numpy as np

SCHEDULES = ("flow_matching", "cosine")
PARAMETERIZATIONS = ("identity", "simple_edm", "euler_fm")
DEFINED = [
    (parameterization, schedule)
    for parameterization in PARAMETERIZATIONS
    for schedule in SCHEDULES
    if (parameterization, schedule) != ("euler_fm", "cosine")
]


def float64(x):
    return np.asarray(x, "float64")


# -- Schedules


def alpha(schedule, t):
    t = float64(t)
    return {"flow_matching": 1 - t, "cosine": np.cos(np.pi * t / 2)}[schedule]


def sigma(schedule, t):
    t = float64(t)
    return {"flow_matching": t, "cosine": np.sin(np.pi * t / 2)}[schedule]


def eta(schedule, t):
    return sigma(schedule, t) / alpha(schedule, t)


def inverse_eta(schedule, e):
    e = float64(e)
    return {"flow_matching": e / (1 + e), "cosine": 2 / np.pi * np.arctan(e)}[schedule]


def log_snr(schedule, t):
    return 2 * np.log(alpha(schedule, t) / sigma(schedule, t))


def inverse_log_snr(schedule, log_snr):
    return inverse_eta(schedule, np.exp(-log_snr / 2))


def log_snr_decay(schedule, t):
    """-d log_snr / dt."""
    t = float64(t)
    if schedule == "flow_matching":
        return 2 / (t * (1 - t))
    return 2 * np.pi / np.sin(np.pi * t)


def ddim(schedule, s, t):
    """Weights of x_t and of x in DDIM(x_t, x, s, t)."""
    ratio = sigma(schedule, s) / sigma(schedule, t)
    return ratio, alpha(schedule, s) - ratio * alpha(schedule, t)


def alpha_derivative(schedule, t):
    t = float64(t)
    if schedule == "flow_matching":
        return -np.ones_like(t)
    return -np.pi / 2 * np.sin(np.pi * t / 2)


def sigma_derivative(schedule, t):
    t = float64(t)
    if schedule == "flow_matching":
        return np.ones_like(t)
    return np.pi / 2 * np.cos(np.pi * t / 2)


# -- Flow map


def c_skip(parameterization, schedule, s, t):
    if parameterization == "identity":
        return ddim(schedule, s, t)[0]
    if parameterization == "euler_fm":
        return np.ones_like(float64(t))
    a_s, a_t = alpha(schedule, s), alpha(schedule, t)
    b_s, b_t = sigma(schedule, s), sigma(schedule, t)
    return (a_s * a_t + b_s * b_t) / (a_t**2 + b_t**2)


def c_out(parameterization, schedule, s, t, sigma_data):
    if parameterization == "identity":
        return ddim(schedule, s, t)[1]
    if parameterization == "euler_fm":
        return -(float64(t) - float64(s)) * sigma_data
    a_s, a_t = alpha(schedule, s), alpha(schedule, t)
    b_s, b_t = sigma(schedule, s), sigma(schedule, t)
    return -(a_s * b_t - a_t * b_s) * sigma_data / np.sqrt(a_t**2 + b_t**2)


def velocity_coefficients(parameterization, schedule, t, sigma_data):
    """Weights of x_t and of the network output in dx/dt."""
    a, b = alpha(schedule, t), sigma(schedule, t)
    da, db = alpha_derivative(schedule, t), sigma_derivative(schedule, t)
    if parameterization == "identity":
        return db / b, da - db / b * a
    if parameterization == "euler_fm":
        return np.zeros_like(a), np.full_like(a, sigma_data)
    norm = a**2 + b**2
    return (a * da + b * db) / norm, sigma_data * (a * db - da * b) / np.sqrt(norm)


# -- Times


def r(mapping, schedule, s, t, k, min_gap, min_time, max_time):
    s, t = float64(s), float64(t)
    if mapping == "eta_decrement":
        step = (eta(schedule, max_time) - eta(schedule, min_time)) / 2**k
        e = np.maximum(eta(schedule, t) - step, eta(schedule, min_time))
        earlier = inverse_eta(schedule, e)
    if mapping == "time_decrement":
        earlier = t - (max_time - min_time) / 2**k
    if mapping == "log_snr_decrement":
        step = (log_snr(schedule, min_time) - log_snr(schedule, max_time)) / 2**k
        earlier = inverse_log_snr(schedule, log_snr(schedule, t) + step)
    if mapping == "inverse_eta_increment":
        step = (1 / eta(schedule, min_time) - 1 / eta(schedule, max_time)) / 2**k
        earlier = inverse_eta(schedule, 1 / (1 / eta(schedule, t) + step))
    return np.maximum(s, np.minimum(t - min_gap, earlier))


def weight(schedule, t, a, b):
    """Eq. 13."""
    sigmoid = 1 / (1 + np.exp(-(b - log_snr(schedule, t))))
    a_t, b_t = alpha(schedule, t), sigma(schedule, t)
    return 0.5 * sigmoid * log_snr_decay(schedule, t) * a_t**a / (a_t**2 + b_t**2)


# -- Kernels between two particles x and y of shape (D,)


def laplace(x, y, scale):
    distance = np.sqrt(np.sum((x - y) ** 2))
    return np.exp(-scale * max(distance, 1e-8) / x.size)


def rbf(x, y, scale, bandwidth_power=2):
    return np.exp(-0.5 * scale**bandwidth_power * np.sum((x - y) ** 2) / x.size)


def pseudo_huber(x, y, scale, c):
    return c - np.sqrt(np.sum((x - y) ** 2) + c**2)


def energy(x, y, scale):
    return -np.sum((x - y) ** 2)


# -- Objective


def v_statistic(y, y_target, scale, kernel):
    """Squared MMD of two sets of M particles, each of shape (M, D)."""
    m = len(y)
    total = 0.0
    for j in range(m):
        for k in range(m):
            total += kernel(y[j], y[k], scale)
            total += kernel(y_target[j], y_target[k], scale)
            total -= 2 * kernel(y[j], y_target[k], scale)
    return total / m**2


def grouped_mmd(y, y_target, scales, kernel, m):
    y, y_target = float64(y), float64(y_target)
    y, y_target = y.reshape(len(y), -1), y_target.reshape(len(y), -1)
    return np.array(
        [
            v_statistic(
                y[i * m : (i + 1) * m], y_target[i * m : (i + 1) * m], w, kernel
            )
            for i, w in enumerate(float64(scales))
        ]
    )


def loss(network, x, noise, s, r, t, parameterization, schedule, kernel, m, a, b):
    """Eq. 67 with sigma_data = 0.5.

    `network(x, t, s)` is G, in NumPy; x and noise (which carries sigma_data) have
    shape (B, D); s, r and t have shape (B / M,), one per group.
    """
    sigma_data = 0.5
    x, noise = float64(x), float64(noise)

    def flow_map(x_t, s, t):
        skip = c_skip(parameterization, schedule, s, t)[:, None]
        out = c_out(parameterization, schedule, s, t, sigma_data)[:, None]
        return skip * x_t + out * network(x_t, t, s)

    def noised(t):
        return alpha(schedule, t)[:, None] * x + sigma(schedule, t)[:, None] * noise

    each_s, each_r, each_t = (np.repeat(float64(time), m) for time in (s, r, t))
    y = flow_map(noised(each_t), each_s, each_t)
    y_target = flow_map(noised(each_r), each_s, each_r)
    scale = 1 / np.maximum(
        np.abs(c_out(parameterization, schedule, s, t, sigma_data)), 1e-6
    )
    mmd = grouped_mmd(y, y_target, scale, kernel, m)
    return np.mean(weight(schedule, t, a, b) * mmd)
